// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <chrono>
#include <memory>

#include "core/base/error.h"
#include "plugins/cuda/loose_threads.h"
#include "plugins/cuda/message.h"
#include "plugins/cuda/settings.h"

namespace checkpointd::cuda {

// Who makes the driver's calls: never this process, because they may hang.
class Backend {
  public:
    using Deadline = std::chrono::steady_clock::time_point;
    virtual ~Backend() = default;

    // kTimeout when the deadline passes: the call goes on, and must not be cut short; finish_late() waits for it.
    // Other calls may be made meanwhile.
    // `fd`, which is borrowed, goes with it.
    virtual Result<Answer> ask(const Request& request, Deadline deadline, int fd = -1) = 0;
    // True once no call is under way that somebody gave up waiting for.
    virtual bool finish_late(Deadline deadline) = 0;
    // Whether it goes on should we be killed, with all that are near us.
    virtual bool outlives_us() const { return false; }

    // Tended while it waits.
    LooseThreads& threads() { return threads_; }

  private:
    LooseThreads threads_;
};

// For calls that only ask, and for loading the driver, which takes seconds: a minute, or less.
Backend::Deadline soon(Backend::Deadline deadline);

// Whether there is something to read, or a process has ended (pidfd), before the deadline passes. `tended` as often as they
// need it meanwhile.
bool wait_readable(int fd, Backend::Deadline deadline, const LooseThreads& tended = {});

// The helper of checkpointd-cuda.socket or, where there is none, one of our own; or the cuda-checkpoint command.
Result<std::unique_ptr<Backend>> open_backend(const Settings& settings);

}  // namespace checkpointd::cuda
