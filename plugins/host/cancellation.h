// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include "core/base/error.h"
#include "core/base/scoped_fd.h"

namespace checkpointd {

// Why nobody may want what a plugin does any more: the job was cancelled, or has failed elsewhere.
// Both in one descriptor, because a plugin polls one.
class Cancellation {
  public:
    Cancellation() = default;
    // `cancel_fd`: borrowed, readable once the job was cancelled; -1: that cannot happen.
    static Result<Cancellation> watch(int cancel_fd);

    // Readable from either on; nothing is to be read from it.
    int fd() const { return either_.get(); }
    // The job has failed. Any thread; cannot be taken back.
    void stop() const;
    bool was_cancelled() const;

  private:
    int cancel_fd_ = -1;
    ScopedFd stop_;
    ScopedFd either_;  // an epoll(7) of both: it goes by what is to be read from them, not by who
                       // has looked
};

}  // namespace checkpointd
