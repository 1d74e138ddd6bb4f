// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/kernel/pidfd.h"

#include <csignal>
#include <fmt/format.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace checkpointd {

Result<ScopedFd> pidfd_open(pid_t pid) {
    ScopedFd fd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
    if (!fd)
        return fail_errno(fmt::format("pid {}", pid), "cannot open a pidfd");
    return fd;
}

Result<ScopedFd> pidfd_get_fd(int pidfd, int fd) {
    ScopedFd copy(static_cast<int>(syscall(SYS_pidfd_getfd, pidfd, fd, 0)));
    if (!copy)
        return fail_errno(fmt::format("fd {}", fd), "cannot take a duplicate of the descriptor");
    return copy;
}

Result<void> pidfd_send_signal(int pidfd, int signal) {
    if (syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0) != 0)
        return fail_errno("pidfd", fmt::format("cannot send signal {}", signal));
    return {};
}

}  // namespace checkpointd
