// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The dump: a running forest of processes goes into image files and stands still until its owner says
// what becomes of it.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <sys/types.h>
#include <utility>
#include <variant>
#include <vector>

#include "core/base/error.h"
#include "core/base/steps.h"
#include "images/manifest.h"

namespace checkpointd {

class Plugins;
class SeizedForest;

// Every process below a cgroup: a forest, as daemonised orphans are children of PID 1.
struct CgroupTarget {
    std::string path;  // absolute path of the directory in the cgroup2 tree
};

// A process and all its descendants. Without a cgroup there is no freezer: new children that appear
// while the tree is seized are looked for until there are none.
struct TreeTarget {
    pid_t root = 0;
};

struct CheckpointRequest {
    std::variant<CgroupTarget, TreeTarget> target;
    // An empty directory. Files in CRIU's format are written into it; writing aside, manifest and rename
    // are the caller's. Borrowed: stays open until checkpoint() returns.
    int image_dir_fd = -1;
    // The first process of the PID namespace in which the cgroup's tasks live, if it is none of them: it is not
    // dumped, and goes on. 0: there is none.
    pid_t namespace_init = 0;
    // Keys of objects that the restore gets from its caller ("socket:[1234]", "pipe:[77]",
    // "file[MNT:INO]"): they are recorded as external, and never a blocker.
    std::set<std::string> externals;
    // Asked once, when everything stands still: more keys of that kind. What the tasks had open before
    // may have changed until then. `pids`: all processes.
    std::function<Result<std::set<std::string>>(const std::vector<pid_t>& pids)> find_externals;
    // The process that the restored unit's manager will call the main one. It becomes the first root in
    // the image. The default is the root of a tree, or the oldest process of a cgroup.
    std::optional<pid_t> main_pid;
    // Called when the cgroup is about to be frozen: what undoes that must be registered before, and after whatever asks
    // of the tasks that they run to be undone, as devices do. An error ends the dump.
    std::function<Result<void>()> before_freeze;
    // How long everything may take to stand still; a task in uninterruptible sleep can hold it up.
    std::chrono::milliseconds freeze_timeout{10000};
    // Deadline of the whole dump; checked between steps. Unset: none.
    std::optional<std::chrono::steady_clock::time_point> deadline;
    // Threads that move memory. 0: as many as pay off.
    unsigned memory_threads = 0;
    // Wants CheckpointStats::digests.
    bool digests = false;
    // What carries devices. Borrowed, until the HeldForest has ended; null: nothing does.
    Plugins* plugins = nullptr;
    // The tasks will go on. Private memory may then be held by forked copies, and written by
    // HeldForest::finish() while its owners run; not where a plugin carries a device.
    bool goes_on = false;
    // With goes_on: less memory than that is written while its owner stands still. Unset: what is
    // worth it.
    std::optional<uint64_t> copies_from;
};

// One stretch of the work, in order.
struct PhaseTime {
    std::string name;  // "quiesce", "freeze", "devices", "collect", "write", "copies"
    std::chrono::nanoseconds took{0};
};

struct CheckpointStats {
    std::chrono::nanoseconds frozen{0};  // since the first task stood still; the holder adds to it
    std::vector<PhaseTime> phases;
    uint64_t pages_scanned = 0;
    uint64_t pages_written = 0;  // 4 KiB pages in pages-N.img of private memory
    uint64_t shared_pages_scanned = 0;
    uint64_t shared_pages_written = 0;
    uint64_t bytes_written = 0;  // of all pages files
    std::vector<images::FileDigest> digests;  // of files that hold pages, if wanted; not of all of them
    unsigned tasks = 0;          // processes, zombies included
    unsigned threads = 0;        // of all living processes
    unsigned copies = 0;         // processes whose memory a copy holds
};

// A dumped forest: every thread is in ptrace-stop, nothing of ours is mapped in it. Its tracer is
// the thread that called checkpoint(); resume, kill, finish and the destructor must run in that
// thread. Should this process die, the kernel lets all go on by itself, and ends the copies.
class HeldForest {
  public:
    class Impl;
    explicit HeldForest(std::unique_ptr<Impl> impl);
    HeldForest(HeldForest&&) noexcept;
    HeldForest& operator=(HeldForest&&) noexcept;
    ~HeldForest();  // resumes what is still held

    // Processes (not threads), parents before children, the main one first.
    const std::vector<pid_t>& pids() const;
    // Lets everything go on as if nothing had happened. The forest is empty afterwards.
    Result<void> resume();
    // The same, but for SIGSTOP, which is there before any of them runs.
    Result<void> resume_stopped();
    // Only where it goes_on, after resume(), and to be called then: writes what copies hold, and
    // ends them. Before it the files are of no use. `stats` are those of checkpoint().
    Result<void> finish(Steps& steps, CheckpointStats& stats);
    // Ends every process with SIGKILL, and returns when all are dead. A parent outside of the forest gets
    // its SIGCHLD as for any death. The forest is empty afterwards.
    Result<void> kill();

  private:
    Result<void> let_go(Result<void> (SeizedForest::*release)());
    std::unique_ptr<Impl> impl_;
};

// Stops the target, collects its state and writes it. All objects that cannot be carried come back as
// one error with a cause for each, before any file is written. Whatever fails: every task runs again
// as before when this returns, and the files in the directory are of no use.
// `steps` is asked before every step that changes something or may fail ("checkpoint.seize", …); with
// plugins it is borrowed until the HeldForest has ended.
Result<HeldForest> checkpoint(const CheckpointRequest& request, Steps& steps,
                              CheckpointStats& stats);

}  // namespace checkpointd
