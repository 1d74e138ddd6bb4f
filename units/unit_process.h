// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Questions about single processes of a unit, and waiting for the answer to change.
#pragma once

#include <chrono>
#include <string>
#include <string_view>
#include <sys/types.h>
#include <thread>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "units/systemd.h"

namespace checkpointd {

// Asks `condition` (Result<bool>) until it is true; kTimeout with `message` when the deadline passes first.
template <typename Condition>
Result<void> poll_until(Deadline deadline, const std::string& object, std::string message,
                        Condition condition) {
    constexpr auto interval = std::chrono::milliseconds(2);
    for (;;) {
        CKPT_ASSIGN(bool holds, condition());
        if (holds)
            return {};
        if (std::chrono::steady_clock::now() >= deadline)
            return fail(ErrorKind::kTimeout, object, std::move(message));
        std::this_thread::sleep_for(interval);
    }
}

// The text after "KEY:" in /proc/PID/status; empty when there is none.
std::string status_field(pid_t pid, std::string_view key);

Result<ScopedFd> open_pidfd(pid_t pid);
// A duplicate of a descriptor of another process; `object` names that process in errors.
Result<ScopedFd> take_descriptor(int pidfd, int number, std::string_view object);

// Can `pid` become the main process of a unit in `cgroup` (as systemd names it)? Tells what systemd would
// otherwise refuse silently, or accept and never hear of again.
Result<void> check_new_main(pid_t pid, const std::string& cgroup);

// SIGKILL to all processes of a cgroup but one, and waits until they are dead. A cgroup that is gone is fine.
Result<void> kill_others(const std::string& cgroup_dir, pid_t spared, Deadline deadline);

}  // namespace checkpointd
