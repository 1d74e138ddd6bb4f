// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/host/channel.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstring>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/base/send_descriptors.h"
#include "plugins/host/deadline.h"

namespace checkpointd {
namespace {

// Control messages of one datagram, aligned as they must be.
struct Control {
    alignas(cmsghdr) char bytes[CMSG_SPACE(Channel::kMostDescriptors * sizeof(int))];
};

int with_errno(int code) {
    errno = code;
    return -1;
}

// Milliseconds until a deadline, for poll(2), rounded up; -1: it never comes.
int poll_time(uint64_t deadline) {
    const auto when = to_deadline(deadline);
    if (when == std::chrono::steady_clock::time_point::max())
        return -1;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(when - std::chrono::steady_clock::now());
    return static_cast<int>(std::clamp<int64_t>(left.count(), 0, INT_MAX));
}

// Hands over the descriptors of a message; all of them, or none.
int take_descriptors(msghdr& message, int* fds, size_t* count) {
    const size_t room = *count;
    *count = 0;
    int code = message.msg_flags & MSG_CTRUNC ? EMFILE : message.msg_flags & MSG_TRUNC ? EMSGSIZE : 0;
    for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr; part = CMSG_NXTHDR(&message, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        const size_t sent = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        int all[Channel::kMostDescriptors];
        std::memcpy(all, CMSG_DATA(part), sent * sizeof(int));
        if (code == 0 && sent > room)
            code = EMSGSIZE;
        if (code == 0)
            std::copy_n(all, *count = sent, fds);
        else
            std::for_each(all, all + sent, close);
    }
    return code;
}

}  // namespace

Result<std::unique_ptr<Channel>> Channel::open() {
    // Ordered, with boundaries, and with an end: unix(7).
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
        return fail_errno("plugins' channel", "socketpair");
    return std::unique_ptr<Channel>(new Channel(ScopedFd(ends[0]), ScopedFd(ends[1])));
}

int Channel::send(int fd, const void* data, size_t size, const int* fds, size_t count) {
    if (size == 0 || count > kMostDescriptors)
        return with_errno(EINVAL);
    if (size > kMostBytes)
        return with_errno(EMSGSIZE);
    while (send_descriptors(fd, data, size, fds, count, MSG_NOSIGNAL) < 0)
        if (errno != EINTR)
            return -1;
    return 0;
}

ssize_t Channel::receive(void* data, size_t size, int* fds, size_t* count, uint64_t deadline_usec, int cancel_fd) {
    while (true) {
        pollfd wait[] = {{own_end_.get(), POLLIN, 0}, {cancel_fd, POLLIN, 0}};
        const int ready = poll(wait, 2, poll_time(deadline_usec));
        if (ready < 0 && errno != EINTR)
            return -1;
        if (has_failed_ || wait[1].revents != 0)
            return with_errno(ECANCELED);
        if (ready == 0)
            return with_errno(ETIMEDOUT);
        Control control;
        iovec bytes{data, size};
        msghdr message{};
        message.msg_iov = &bytes;
        message.msg_iovlen = 1;
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof(control.bytes);
        const ssize_t got = recvmsg(own_end_.get(), &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            continue;  // another thread was quicker
        if (got < 0)
            return -1;
        const int code = take_descriptors(message, fds, count);
        return code == 0 ? got : with_errno(code);
    }
}

void Channel::no_more_senders() { shutdown(task_end_.get(), SHUT_WR); }

// Who waits for room is woken by what is taken out, not by a shutdown (unix_wait_for_peer in net/unix/af_unix.c).
void Channel::no_more_receivers() {
    shutdown(own_end_.get(), SHUT_RD);
    char byte;
    while (recv(own_end_.get(), &byte, 1, MSG_DONTWAIT) > 0) {
    }
}

void Channel::cancel() {
    has_failed_ = true;
    shutdown(own_end_.get(), SHUT_RDWR);
}

}  // namespace checkpointd
