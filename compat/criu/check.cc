// SPDX-License-Identifier: LGPL-2.1-or-later
#include <cerrno>
#include <linux/kcmp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <vector>

#include "compat/criu/actions.h"

namespace checkpointd::criu {
namespace {

bool always() {
    return true;  // the oldest kernel we support, 6.1, has it
}

bool has_time_namespaces() {
    return access("/proc/self/ns/time_for_children", F_OK) == 0;
}

bool has_seccomp() {
    return access("/proc/sys/kernel/seccomp/actions_avail", F_OK) == 0;
}

bool has_kcmp() {
    return syscall(SYS_kcmp, getpid(), getpid(), KCMP_VM, 0, 0) == 0;
}

bool has_timer_restore_ids() {
    constexpr int kTimerCreateRestoreIds = 77;  // include/uapi/linux/prctl.h, Linux 6.15
    constexpr int kGet = 2;
    return prctl(kTimerCreateRestoreIds, kGet, 0, 0, 0) >= 0;
}

// CRIU's feature names that both the kernel and this engine can have. A name that is missing here is
// answered with "no": a caller then skips what we would refuse.
struct Feature {
    const char* name;
    bool (*present)();
};

constexpr Feature kFeatures[] = {
    {"mnt_id", always},
    {"timerfd", always},
    {"clone3_set_tid", always},
    {"openat2", always},
    {"get_rseq_conf", always},
    {"seccomp_suspend", has_seccomp},
    {"seccomp_filters", has_seccomp},
    {"kcmp_epoll", has_kcmp},
    {"timens", has_time_namespaces},
    {"timer_cr_ids", has_timer_restore_ids},
};

Result<void> check_feature(const std::string& name) {
    for (const Feature& feature : kFeatures)
        if (name == feature.name && feature.present())
            return {};
    return fail(ErrorKind::kUnsupported, name, "this feature is not there");
}

}  // namespace

Result<void> check(const Options& options) {
    if (geteuid() != 0)
        return fail(ErrorKind::kDenied, "check", "needs root");
    std::vector<std::string> wanted = options.features;
    if (wanted.empty())
        wanted = {"seccomp_suspend", "kcmp_epoll", "timens"};
    std::vector<Error> missing;
    for (const std::string& name : wanted)
        if (auto found = check_feature(name); !found)
            missing.push_back(std::move(found).error());
    return all_blockers("check", "features are missing", std::move(missing));
}

}  // namespace checkpointd::criu
