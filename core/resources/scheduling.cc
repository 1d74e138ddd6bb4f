// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/resources/scheduling.h"

#include <cerrno>
#include <fcntl.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/base/io.h"
#include "core/kernel/proc_text.h"

namespace checkpointd {
namespace {

constexpr int kDeadline = 6;          // SCHED_DEADLINE, which sched.h of glibc 2.36 lacks
constexpr int kIoPriorityProcess = 1;  // IOPRIO_WHO_PROCESS: one thread

std::string name_of(pid_t tid) { return fmt::format("tid {}", tid); }

}  // namespace

Result<void> dump_scheduling(pid_t tid, images::thread_core_entry& out) {
    int policy = sched_getscheduler(tid);
    if (policy < 0)
        return fail_errno(name_of(tid), "cannot read the scheduling policy");
    int plain = policy & ~SCHED_RESET_ON_FORK;
    if (plain == kDeadline)
        return fail(ErrorKind::kUnsupported, name_of(tid), "runs under SCHED_DEADLINE",
                    "move it to another policy with chrt(1)");
    out.set_sched_policy(static_cast<uint32_t>(policy));
    if (plain == SCHED_FIFO || plain == SCHED_RR) {
        sched_param param{};
        if (sched_getparam(tid, &param) < 0)
            return fail_errno(name_of(tid), "cannot read the scheduling priority");
        out.set_sched_prio(static_cast<uint32_t>(param.sched_priority));
    }
    errno = 0;
    int nice = getpriority(PRIO_PROCESS, static_cast<id_t>(tid));
    if (nice == -1 && errno != 0)
        return fail_errno(name_of(tid), "cannot read the nice value");
    out.set_sched_nice(nice);
    return {};
}

Result<void> dump_scheduling_extra(pid_t tid, images::thread_extra_entry& out) {
    char cpus[1024];  // 8192 CPUs: CONFIG_NR_CPUS has no larger value on x86_64
    // The raw call answers how many bytes it filled; glibc's hides that.
    long size = syscall(SYS_sched_getaffinity, tid, sizeof(cpus), cpus);
    if (size < 0)
        return fail_errno(name_of(tid), "cannot read the CPU affinity");
    out.set_cpus(cpus, static_cast<size_t>(size));
    long priority = syscall(SYS_ioprio_get, kIoPriorityProcess, tid);
    if (priority < 0)
        return fail_errno(name_of(tid), "cannot read the I/O priority");
    out.set_io_priority(static_cast<uint32_t>(priority));
    CKPT_ASSIGN(std::string slack, read_file(AT_FDCWD, fmt::format("/proc/{}/timerslack_ns", tid)));
    auto value = to_number<uint64_t>(trim(slack));
    if (value)
        out.set_timer_slack_ns(*value);
    return {};
}

}  // namespace checkpointd
