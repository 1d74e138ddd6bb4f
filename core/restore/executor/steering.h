// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <sys/types.h>
#include <chrono>
#include <map>
#include <optional>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"

namespace checkpointd {

// Makes the next process or thread that is made in our PID namespace get a number that we choose,
// for those that may not choose it themselves: clone3(2) with set_tid asks for
// CAP_CHECKPOINT_RESTORE in the user namespace that owns the PID namespace. Anybody on this machine
// may be quicker, so the caller looks at the number that came out and aims again; while others do
// the same, they wait (flock(2), as CRIU does).
class NumberSteering {
  public:
    NumberSteering() = default;
    NumberSteering(const NumberSteering&) = delete;
    NumberSteering& operator=(const NumberSteering&) = delete;
    ~NumberSteering() { release(); }

    // kConflict when somebody else has had the number for too long.
    Result<void> aim(pid_t number);
    // The number was given to somebody. The next ones follow where they would have without us,
    // above the numbers that images need.
    void release();

  private:
    Result<void> wait_until_free(pid_t number);
    Result<void> lock();
    Result<void> open();

    ScopedFd file_;
    std::optional<pid_t> cursor_;  // as it was before the aim
    std::map<pid_t, std::chrono::steady_clock::time_point> first_aims_;
};

}  // namespace checkpointd
