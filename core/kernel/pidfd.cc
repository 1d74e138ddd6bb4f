// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/kernel/pidfd.h"

#include <csignal>
#include <fcntl.h>
#include <fmt/core.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/base/io.h"
#include "core/kernel/proc_text.h"

namespace checkpointd {

Result<ScopedFd> pidfd_open(pid_t pid) {
    ScopedFd fd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
    if (!fd)
        return fail_errno(fmt::format("pid {}", pid), "cannot open a pidfd");
    return fd;
}

Result<pid_t> pid_of_pidfd(int pidfd) {
    CKPT_ASSIGN(std::string info, read_file(AT_FDCWD, fmt::format("/proc/self/fdinfo/{}", pidfd)));
    constexpr std::string_view key = "\nPid:\t";
    size_t at = info.find(key);
    size_t end = at == std::string::npos ? at : info.find('\n', at + key.size());
    if (end == std::string::npos)
        return fail(ErrorKind::kBadInput, fmt::format("fd {}", pidfd), "is not a pidfd");
    size_t start = at + key.size();
    auto pid = to_number<pid_t>(std::string_view(info).substr(start, end - start));
    if (!pid || *pid <= 0)  // -1: reaped; 0: not in our PID namespace
        return fail(ErrorKind::kGone, fmt::format("fd {}", pidfd), "its process is gone");
    return *pid;
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
