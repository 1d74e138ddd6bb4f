// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <chrono>
#include <string>
#include <string_view>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"

namespace checkpointd {

// Where the cgroup2 tree is mounted: /sys/fs/cgroup (unified layout) or /sys/fs/cgroup/unified (hybrid),
// or wherever else /proc/self/mountinfo says. The parser takes the text of mountinfo.
Result<std::string> cgroup2_mount_point();
Result<std::string> parse_cgroup2_mount_point(std::string_view mountinfo);

// The cgroup2 directory a process is in, as an absolute path below the mount point.
Result<std::string> cgroup2_of(pid_t pid);

// All processes (thread group leaders) or threads of a cgroup and of those below it, ascending. Zombies are
// not listed by the kernel, except a leader whose other threads live on. `path`: absolute directory.
Result<std::vector<pid_t>> cgroup_processes(const std::string& path);
Result<std::vector<pid_t>> cgroup_threads(const std::string& path);

// Puts a process with all its threads into a cgroup.
Result<void> move_to_cgroup(pid_t pid, const std::string& path);

// Keeps a cgroup frozen (cgroup.freeze) as long as it lives; thaws when destroyed. A cgroup that was frozen
// before by somebody else stays as it was. Should this process die, the cgroup stays frozen: whoever uses
// this journals it first.
class CgroupFreeze {
  public:
    // Freezes and waits for "frozen 1" in cgroup.events until the deadline; thawed again on failure.
    static Result<CgroupFreeze> freeze(const std::string& path,
                                       std::chrono::steady_clock::time_point deadline);
    CgroupFreeze(CgroupFreeze&& other) noexcept;
    CgroupFreeze& operator=(CgroupFreeze&& other) noexcept;
    ~CgroupFreeze();

    Result<void> thaw();
    bool was_frozen_before() const { return was_frozen_; }

  private:
    CgroupFreeze(std::string path, bool was_frozen)
        : path_(std::move(path)), was_frozen_(was_frozen), active_(true) {}

    std::string path_;
    bool was_frozen_ = false;
    bool active_ = false;
};

// Writes 0 to cgroup.freeze: the undo step of a CgroupFreeze whose owner died. A cgroup that is gone is fine.
Result<void> thaw_cgroup(const std::string& path);

// SIGKILL for all that is in it and below, frozen or not (cgroup.kill, Linux 5.14), and waits till it is empty.
// A cgroup that is gone is fine. kTimeout when the deadline passes; the signals are sent by then.
Result<void> kill_cgroup(const std::string& path, std::chrono::steady_clock::time_point deadline);

}  // namespace checkpointd
