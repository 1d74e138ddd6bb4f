// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/turn.h"

#include <cerrno>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

namespace checkpointd::cuda {
namespace {

constexpr std::chrono::milliseconds kPoll{10};

Result<void> lock_until(int fd, const std::string& path, pid_t pid, Backend::Deadline deadline, const LooseThreads& tended) {
    while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return fail_errno(path, "cannot be locked");
        if (std::chrono::steady_clock::now() >= deadline)
            return fail(ErrorKind::kTimeout, fmt::format("pid {} (CUDA)", pid),
                        "a command that somebody gave up waiting for still works on it");
        tended.tend();
        std::this_thread::sleep_for(kPoll);
    }
    return {};
}

// Not removed meanwhile by who had it before.
bool is_at(int fd, const std::string& path) {
    struct stat own {};
    struct stat there {};
    return fstat(fd, &own) == 0 && stat(path.c_str(), &there) == 0 && own.st_dev == there.st_dev &&
           own.st_ino == there.st_ino;
}

}  // namespace

std::string turn_file(const std::string& folder, pid_t pid) { return fmt::format("{}/cuda-command-{}", folder, pid); }

Result<ScopedFd> take_turn(const std::string& folder, pid_t pid, Backend::Deadline deadline, const LooseThreads& tended) {
    const std::string path = turn_file(folder, pid);
    for (;;) {
        ScopedFd file(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
        if (!file)
            return fail_errno(path, "cannot be made");
        CKPT_TRY(lock_until(file.get(), path, pid, deadline, tended));
        if (is_at(file.get(), path))
            return file;
    }
}

Result<void> wait_for_turn(const std::string& folder, pid_t pid, Backend::Deadline deadline, const LooseThreads& tended) {
    if (access(turn_file(folder, pid).c_str(), F_OK) != 0)
        return {};
    CKPT_ASSIGN(const ScopedFd turn, take_turn(folder, pid, deadline, tended));
    remove_turn(folder, pid);
    return {};
}

void remove_turn(const std::string& folder, pid_t pid) { (void)unlink(turn_file(folder, pid).c_str()); }

}  // namespace checkpointd::cuda
