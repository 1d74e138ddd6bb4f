// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <sys/types.h>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"

namespace checkpointd {

// The way of a plugin's messages from restored tasks into the worker. Opened before the tasks are made; they inherit one
// end, and the agent moves it out of their way. What the functions mean is told in plugin.h (send, receive).
class Channel {
  public:
    static constexpr size_t kMostBytes = 60 << 10;
    static constexpr size_t kMostDescriptors = 250;  // SCM_MAX_FD is 253

    static Result<std::unique_ptr<Channel>> open();
    Channel(const Channel&) = delete;
    Channel& operator=(const Channel&) = delete;

    // Borrowed; for the tasks.
    int task_end() const { return task_end_.get(); }
    // In the task, through its copy of task_end(). Nothing but a system call.
    static int send(int fd, const void* data, size_t size, const int* fds, size_t count);

    // In the worker, from any thread.
    ssize_t receive(void* data, size_t size, int* fds, size_t* count, uint64_t deadline_usec, int cancel_fd);
    // What was sent is received yet, then receive() answers 0.
    void no_more_senders();
    // A sender must not wait for somebody who has gone.
    void no_more_receivers();
    // From here on receive() answers ECANCELED, also whoever waits in it now.
    void cancel();

  private:
    Channel(ScopedFd task_end, ScopedFd own_end) : task_end_(std::move(task_end)), own_end_(std::move(own_end)) {}

    ScopedFd task_end_;
    ScopedFd own_end_;
    std::atomic<bool> has_failed_ = false;
};

}  // namespace checkpointd
