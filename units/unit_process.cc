// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/unit_process.h"

#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <vector>

#include "core/base/io.h"
#include "core/kernel/cgroup.h"

namespace checkpointd {

std::string status_field(pid_t pid, std::string_view key) {
    std::string text = read_file(AT_FDCWD, fmt::format("/proc/{}/status", pid)).value_or("");
    size_t at = text.find(fmt::format("\n{}:", key));
    if (at == std::string::npos)
        return {};
    at = text.find_first_not_of(" \t", at + key.size() + 2);
    return text.substr(at, text.find('\n', at) - at);
}

Result<ScopedFd> open_pidfd(pid_t pid) {
    ScopedFd fd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
    if (!fd)
        return fail_errno(fmt::format("pid {}", pid), "cannot open a pidfd");
    return fd;
}

Result<ScopedFd> take_descriptor(int pidfd, int number, std::string_view object) {
    ScopedFd fd(static_cast<int>(syscall(SYS_pidfd_getfd, pidfd, number, 0)));
    if (!fd)
        return fail_errno(std::string(object), fmt::format("cannot take its descriptor {}", number));
    return fd;
}

Result<void> check_new_main(pid_t pid, const std::string& cgroup) {
    std::string object = fmt::format("pid {}", pid);
    std::string state = status_field(pid, "State");
    if (state.empty() || state[0] == 'Z' || state[0] == 'X')
        return fail(ErrorKind::kGone, object, "the restored main process is dead");
    if (status_field(pid, "PPid") != "1")
        return fail(ErrorKind::kInternal, object,
                    "the restored main process is no child of PID 1, which would not notice its end");
    CKPT_ASSIGN(std::string text, read_file(AT_FDCWD, fmt::format("/proc/{}/cgroup", pid)));
    if (text.find("0::" + cgroup + "\n") == std::string::npos &&
        text.find("0::" + cgroup + "/") == std::string::npos)
        return fail(ErrorKind::kInternal, object,
                    fmt::format("the restored main process is not in {}", cgroup));
    return {};
}

Result<void> kill_others(const std::string& cgroup_dir, pid_t spared, Deadline deadline) {
    return poll_until(deadline, cgroup_dir, "its processes do not die of SIGKILL", [&]() -> Result<bool> {
        auto pids = cgroup_processes(cgroup_dir);
        if (!pids && (pids.error().errno_code == ENOENT || pids.error().errno_code == ENODEV))
            return true;
        if (!pids)
            return tl::unexpected(std::move(pids).error());
        std::erase(*pids, spared);
        for (pid_t pid : *pids)
            ::kill(pid, SIGKILL);
        return pids->empty();
    });
}

}  // namespace checkpointd
