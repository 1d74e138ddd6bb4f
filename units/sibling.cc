// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/sibling.h"

#include <csignal>
#include <cstdint>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <utility>

#include "core/base/io.h"

namespace checkpointd {
namespace {

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

Result<pid_t> fork_sibling(int cgroup_fd, void (*run)(void* context), void* context, const char* object) {
    clone_args args = {};
    args.flags = CLONE_PARENT | CLONE_CLEAR_SIGHAND | (cgroup_fd >= 0 ? CLONE_INTO_CGROUP : 0);
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
