// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/host/cancellation.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

namespace checkpointd {

Result<Cancellation> Cancellation::watch(int cancel_fd) {
    Cancellation made;
    made.cancel_fd_ = cancel_fd;
    made.stop_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    made.either_.reset(epoll_create1(EPOLL_CLOEXEC));
    if (!made.stop_ || !made.either_)
        return fail_errno("plugins", "cannot make what stops them");
    for (const int fd : {made.stop_.get(), cancel_fd}) {
        epoll_event event{};
        event.events = EPOLLIN;
        if (fd >= 0 && epoll_ctl(made.either_.get(), EPOLL_CTL_ADD, fd, &event) != 0)
            return fail_errno("plugins", "cannot watch what stops them");
    }
    return made;
}

void Cancellation::stop() const {
    (void)eventfd_write(stop_.get(), 1);  // EAGAIN after 2^64 of them
}

bool Cancellation::was_cancelled() const {
    pollfd entry{cancel_fd_, POLLIN, 0};
    return cancel_fd_ >= 0 && poll(&entry, 1, 0) > 0;
}

}  // namespace checkpointd
