// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/sibling.h"

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <utility>

#include "core/base/io.h"
#include "units/unit_process.h"

namespace checkpointd {
namespace {

struct BirthReport {
    unsigned step;
    int error;
};

// Nothing may interrupt the child before it has come to its own.
class AllSignalsBlocked {
  public:
    AllSignalsBlocked() {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &saved_);
    }
    AllSignalsBlocked(const AllSignalsBlocked&) = delete;
    AllSignalsBlocked& operator=(const AllSignalsBlocked&) = delete;
    ~AllSignalsBlocked() { pthread_sigmask(SIG_SETMASK, &saved_, nullptr); }

  private:
    sigset_t saved_;
};

}  // namespace

Result<pid_t> fork_sibling(int cgroup_fd, void (*run)(void* context), void* context, const char* object,
                           uint64_t flags) {
    clone_args args = {};
    args.flags = flags | CLONE_PARENT | CLONE_CLEAR_SIGHAND | (cgroup_fd >= 0 ? CLONE_INTO_CGROUP : 0);
    args.cgroup = cgroup_fd >= 0 ? static_cast<uint64_t>(cgroup_fd) : 0;
    AllSignalsBlocked blocked;
    long pid = syscall(SYS_clone3, &args, sizeof(args));
    if (pid < 0)
        return fail_errno(object, "cannot make a process");
    if (pid == 0) {
        run(context);
        _exit(1);
    }
    return static_cast<pid_t>(pid);
}

bool keep_capabilities(uint64_t kept) {
    __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct data[2] = {};
    for (unsigned half : {0u, 1u}) {
        const auto bits = static_cast<unsigned>(kept >> (32 * half));
        data[half] = {bits, bits, bits};
    }
    if (syscall(SYS_capset, &header, data) != 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return false;
    for (unsigned long number = 0; number < 64; ++number)
        if ((kept >> number & 1) != 0 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0) != 0)
            return false;
    return true;
}

void give_up(int report, unsigned step) {
    BirthReport failed = {step, errno};
    (void)!write(report, &failed, sizeof(failed));
    _exit(1);
}

Result<void> wait_born(ScopedFd report, std::span<const char* const> steps, const std::string& object,
                       Deadline deadline) {
    CKPT_TRY(poll_until(deadline, object, "does not come up", [&]() -> Result<bool> {
        pollfd ready = {report.get(), POLLIN, 0};
        return poll(&ready, 1, 0) == 1;
    }));
    BirthReport failed = {};
    if (read(report.get(), &failed, sizeof(failed)) != sizeof(failed) || failed.step >= steps.size())
        return {};
    return fail_errno(object, fmt::format("cannot {}", steps[failed.step]), failed.error);
}

int differing_namespaces(pid_t pid) {
    constexpr std::pair<const char*, int> kinds[] = {{"mnt", CLONE_NEWNS},
                                                     {"uts", CLONE_NEWUTS},
                                                     {"ipc", CLONE_NEWIPC},
                                                     {"net", CLONE_NEWNET},
                                                     {"cgroup", CLONE_NEWCGROUP}};
    int flags = 0;
    for (auto [name, flag] : kinds) {
        auto own = read_link(AT_FDCWD, fmt::format("/proc/self/ns/{}", name));
        auto theirs = read_link(AT_FDCWD, fmt::format("/proc/{}/ns/{}", pid, name));
        if (own && theirs && *own != *theirs)
            flags |= flag;
    }
    return flags;
}

}  // namespace checkpointd
