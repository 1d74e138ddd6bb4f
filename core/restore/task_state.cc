// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/restore/task_state.h"

#include <algorithm>
#include <array>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/membarrier.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <sched.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <fmt/core.h>

namespace checkpointd {

namespace {

constexpr size_t kSigsetSize = 8;
constexpr size_t kSiginfoSize = 128;

struct KernelSigaction {  // struct sigaction of the kernel, not of the C library
    uint64_t handler, flags, restorer, mask;
};

struct KernelStack {
    uint64_t sp;
    uint32_t flags;
    uint32_t unused;
    uint64_t size;
};

struct KernelTimes {  // struct itimerval and itimerspec
    uint64_t interval_seconds, interval_fraction, seconds, fraction;
};

struct KernelSigevent {  // 64 bytes: include/uapi/asm-generic/siginfo.h
    uint64_t value;
    int32_t signo;
    int32_t notify;
    int32_t tid;
    int32_t unused[11];
};
static_assert(sizeof(KernelSigevent) == 64);

// Signals that would act at once although everything is blocked.
bool acts_at_once(int signal) {
    return signal == SIGSTOP || signal == SIGKILL || signal == SIGTRAP;
}

Result<int> check_siginfo(const images::siginfo_entry& entry, const std::string& object) {
    int signal = 0;
    if (entry.siginfo().size() != kSiginfoSize)
        return fail(ErrorKind::kBadImage, object, "a pending signal has the wrong size");
    std::memcpy(&signal, entry.siginfo().data(), sizeof(signal));
    if (signal < 1 || signal > 64)
        return fail(ErrorKind::kBadImage, object, "a pending signal has no such number");
    return signal;
}

template <typename Words>
uint64_t capability_set(const Words& words) {
    uint64_t low = words.size() > 0 ? words[0] : 0;
    uint64_t high = words.size() > 1 ? words[1] : 0;
    return low | high << 32;
}

struct CapabilityData {
    __user_cap_data_struct words[2];
};

CapabilityData capability_data(uint64_t effective, uint64_t permitted, uint64_t inheritable) {
    CapabilityData data{};
    for (unsigned i = 0; i < 2; i++) {
        data.words[i].effective = static_cast<uint32_t>(effective >> (32 * i));
        data.words[i].permitted = static_cast<uint32_t>(permitted >> (32 * i));
        data.words[i].inheritable = static_cast<uint32_t>(inheritable >> (32 * i));
    }
    return data;
}

void set_capabilities(const std::string& label, Program& program, uint64_t effective,
                      uint64_t permitted, uint64_t inheritable) {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    Plan& plan = program.plan();
    program.call(label, SYS_capset,
                 {plan.object(header), plan.object(capability_data(effective, permitted, inheritable))});
}

}  // namespace

uint64_t signal_mask(const images::core_entry& core) {
    if (core.thread_core().has_blk_sigset())
        return core.thread_core().blk_sigset();
    return core.tc().blk_sigset();
}

// Images have no entries for SIGKILL and SIGSTOP.
bool has_default_action(const TaskRecord& task, int signal) {
    const auto& actions = task.core.tc().sigactions();
    int index = signal - 1 - (signal > SIGKILL) - (signal > SIGSTOP);
    return index >= actions.size() || actions[index].sigaction() == 0;
}

Result<void> plan_thread_basics(const ThreadState& thread, Program& program) {
    const images::thread_core_entry& core = thread.core.thread_core();
    Plan& plan = program.plan();
    program.call(thread.object + " clear_child_tid", SYS_set_tid_address,
                 {thread.core.thread_info().clear_tid_addr()});
    if (core.futex_rla() != 0)
        program.call(thread.object + " robust list", SYS_set_robust_list,
                     {core.futex_rla(), core.futex_rla_len()});
    if (core.has_sas() && core.sas().ss_size() != 0 && !(core.sas().ss_flags() & SS_DISABLE)) {
        KernelStack stack{core.sas().ss_sp(),
                          core.sas().ss_flags() & ~static_cast<uint32_t>(SS_ONSTACK), 0,
                          core.sas().ss_size()};
        program.call(thread.object + " alternate stack", SYS_sigaltstack, {plan.object(stack), 0});
    }
    if (core.has_rseq_entry() && core.rseq_entry().rseq_abi_pointer() != 0)
        program.call(thread.object + " rseq", SYS_rseq,
                     {core.rseq_entry().rseq_abi_pointer(), core.rseq_entry().rseq_abi_size(), 0,
                      core.rseq_entry().signature()});
    std::string comm = core.has_comm() ? core.comm() : thread.core.tc().comm();
    program.call(thread.object + " name", SYS_prctl, {PR_SET_NAME, plan.string(comm), 0, 0, 0});
    return {};
}

namespace {

// CPUs that there are no more cannot be asked for; with none left the thread runs anywhere.
std::string possible_cpus(const std::string& wanted, const std::string& own) {
    std::string both;
    bool any = false;
    for (size_t i = 0; i < wanted.size() && i < own.size(); i++) {
        both.push_back(static_cast<char>(wanted[i] & own[i]));
        any = any || both.back() != 0;
    }
    return any ? both : std::string{};
}

bool same_cpus(const std::string& a, const std::string& b) {
    size_t size = std::max(a.size(), b.size());
    for (size_t i = 0; i < size; i++)
        if ((i < a.size() ? a[i] : 0) != (i < b.size() ? b[i] : 0))
            return false;
    return true;
}

// Before the policy: a real-time thread has no timer slack (prctl(2)).
void plan_schedule_extra(const ThreadState& thread, const HostFacts& facts, Program& program,
                         Program* outside) {
    constexpr int kThread = 1;  // IOPRIO_WHO_PROCESS
    Program& privileged = outside != nullptr ? *outside : program;
    pid_t who = outside != nullptr ? thread.tid : 0;
    const images::thread_extra_entry& extra = thread.extra;
    std::string cpus = possible_cpus(extra.cpus(), facts.cpus);
    if (!cpus.empty() && !same_cpus(cpus, facts.cpus))
        privileged.try_call(thread.object + " CPU affinity", SYS_sched_setaffinity,
                            {who, cpus.size(), program.plan().bytes(cpus.data(), cpus.size())});
    if (extra.has_io_priority() && extra.io_priority() != facts.io_priority)
        privileged.call(thread.object + " I/O priority", SYS_ioprio_set,
                        {kThread, who, extra.io_priority()});
    if (extra.timer_slack_ns() != 0 && extra.timer_slack_ns() != facts.timer_slack_ns)
        program.call(thread.object + " timer slack", SYS_prctl,
                     {PR_SET_TIMERSLACK, extra.timer_slack_ns(), 0, 0, 0});
}

}  // namespace

Result<void> plan_schedule(const ThreadState& thread, const HostFacts& facts, Program& program,
                           Program* outside) {
    const images::thread_core_entry& core = thread.core.thread_core();
    Program& privileged = outside != nullptr ? *outside : program;
    pid_t who = outside != nullptr ? thread.tid : 0;
    plan_schedule_extra(thread, facts, program, outside);
    int policy = static_cast<int>(core.sched_policy());
    int plain = policy & ~SCHED_RESET_ON_FORK;
    bool real_time = plain == SCHED_FIFO || plain == SCHED_RR;
    if (core.has_sched_policy() && (policy != facts.policy || real_time)) {
        sched_param param{};
        param.sched_priority = real_time ? static_cast<int>(core.sched_prio()) : 0;
        privileged.call(thread.object + " scheduler", SYS_sched_setscheduler,
                        {who, policy, program.plan().object(param)});
    }
    if (core.has_sched_nice() && core.sched_nice() != facts.nice)
        privileged.call(thread.object + " nice", SYS_setpriority,
                        {PRIO_PROCESS, who, core.sched_nice()});
    return {};
}

Result<void> plan_pending_signals(const ThreadState& thread, PlannedTask& planned,
                                  Program& program) {
    for (const images::siginfo_entry& entry : thread.core.thread_core().signals_p().signals()) {
        CKPT_ASSIGN(int signal, check_siginfo(entry, thread.object));
        if (acts_at_once(signal)) {
            planned.late_signals.push_back(signal);
            continue;
        }
        ArenaRef info = program.plan().bytes(entry.siginfo().data(), entry.siginfo().size());
        program.call(fmt::format("{} pending signal {}", thread.object, signal),
                     SYS_rt_tgsigqueueinfo, {thread.pid, thread.tid, signal, info});
    }
    return {};
}

Result<void> plan_shared_signals(const TaskRecord& task, PlannedTask& planned, Program& program) {
    for (const images::siginfo_entry& entry : task.core.tc().signals_s().signals()) {
        CKPT_ASSIGN(int signal, check_siginfo(entry, task.object()));
        if (acts_at_once(signal)) {
            planned.late_signals.push_back(signal);
            continue;
        }
        ArenaRef info = program.plan().bytes(entry.siginfo().data(), entry.siginfo().size());
        program.call(fmt::format("{} pending signal {}", task.object(), signal), SYS_rt_sigqueueinfo,
                     {task.pid(), signal, info});
    }
    return {};
}

Result<std::vector<int>> filter_chain(const images::thread_core_entry& core,
                                      const images::seccomp_entry& filters,
                                      const std::string& object) {
    std::vector<int> chain;
    if (core.seccomp_mode() != images::filter)
        return chain;
    auto count = static_cast<uint32_t>(filters.seccomp_filters_size());
    for (uint32_t at = core.seccomp_filter();;) {
        if (at >= count || chain.size() > count)
            return fail(ErrorKind::kBadImage, object, "its seccomp filters make no chain");
        chain.push_back(static_cast<int>(at));
        if (!filters.seccomp_filters(static_cast<int>(at)).has_prev())
            break;
        at = filters.seccomp_filters(static_cast<int>(at)).prev();
    }
    std::reverse(chain.begin(), chain.end());
    return chain;
}

Result<void> plan_filters(const std::string& object, std::span<const int> chain, unsigned flags,
                          const images::seccomp_entry& filters, Program& program) {
    constexpr uint32_t kCarried = SECCOMP_FILTER_FLAG_LOG | SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    for (int index : chain) {
        const images::seccomp_filter& filter = filters.seccomp_filters(index);
        size_t size = filter.filter().size();
        if (size == 0 || size % sizeof(sock_filter) != 0 || size / sizeof(sock_filter) > BPF_MAXINSNS)
            return fail(ErrorKind::kBadImage, object, "a seccomp filter has the wrong size");
        sock_fprog program_header{};
        program_header.len = static_cast<unsigned short>(size / sizeof(sock_filter));
        Plan& plan = program.plan();
        ArenaRef code = plan.bytes(filter.filter().data(), size);
        ArenaRef where = plan.object(program_header);
        plan.point(ArenaRef{where.offset + offsetof(sock_fprog, filter)}, code);
        // With TSYNC the answer may be the thread that could not be brought along.
        program.call_expect(object + " seccomp", 0, SYS_seccomp,
                            {SECCOMP_SET_MODE_FILTER, (filter.flags() & kCarried) | flags, where});
    }
    return {};
}

// Order, from capabilities(7): with SECBIT_NO_SETUID_FIXUP a change of uids leaves the capabilities
// alone; inheritable ones must be set while they are still in the bounding set; ambient ones need
// permitted and inheritable; the final sets come last, because everything before needs privileges.
Result<void> plan_ids(const ThreadState& thread, Program& program) {
    const images::creds_entry& creds = thread.core.thread_core().creds();
    if (!thread.core.thread_core().has_creds())
        return {};
    std::string label = thread.object + " credentials";
    program.call(label, SYS_prctl, {PR_SET_SECUREBITS, 1u << SECURE_NO_SETUID_FIXUP, 0, 0, 0});
    std::vector<uint32_t> groups(creds.groups().begin(), creds.groups().end());
    program.call(
        label, SYS_setgroups,
        {groups.size(), program.plan().bytes(groups.data(), groups.size() * sizeof(uint32_t))});
    program.call(label, SYS_setresgid, {creds.gid(), creds.egid(), creds.sgid()});
    program.call(label, SYS_setfsgid, {creds.fsgid()});
    program.call(label, SYS_setresuid, {creds.uid(), creds.euid(), creds.suid()});
    program.call(label, SYS_setfsuid, {creds.fsuid()});
    return {};
}

Result<void> plan_capabilities(const ThreadState& thread, uint64_t own, Program& program) {
    const images::creds_entry& creds = thread.core.thread_core().creds();
    if (!thread.core.thread_core().has_creds())
        return {};
    std::string label = thread.object + " credentials";
    uint64_t inheritable = capability_set(creds.cap_inh());
    set_capabilities(label, program, own, own, inheritable);
    uint64_t bounding = capability_set(creds.cap_bnd());
    for (unsigned cap = 0; cap < 64; cap++)
        if ((bounding >> cap & 1) == 0 && (own >> cap & 1) != 0)
            program.call(label, SYS_prctl, {PR_CAPBSET_DROP, cap, 0, 0, 0});
    uint64_t ambient = capability_set(creds.cap_amb());
    for (unsigned cap = 0; cap < 64; cap++)
        if (ambient >> cap & 1)
            program.call(label, SYS_prctl, {PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0});
    program.call(label, SYS_prctl, {PR_SET_SECUREBITS, creds.secbits(), 0, 0, 0});
    set_capabilities(label, program, capability_set(creds.cap_eff()),
                     capability_set(creds.cap_prm()), inheritable);
    if (creds.no_new_privs())
        program.call(label, SYS_prctl, {PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0});
    // Changed credentials clear it (commit_creds in kernel/cred.c), so it comes after them.
    if (thread.core.thread_core().pdeath_sig() != 0)
        program.call(label, SYS_prctl,
                     {PR_SET_PDEATHSIG, thread.core.thread_core().pdeath_sig(), 0, 0, 0});
    return {};
}

Result<void> plan_signal_actions(const TaskRecord& task, PlannedTask& planned, Program& program) {
    std::string label = fmt::format("pid {} signal actions", task.pid());
    KernelSigaction none{};
    // Ends of zombies made SIGCHLD pending; setting the default drops what is pending.
    program.call(label, SYS_rt_sigaction, {SIGCHLD, program.plan().object(none), 0, kSigsetSize});
    int signal = 0;
    for (const images::sa_entry& action : task.core.tc().sigactions()) {
        signal++;
        while (signal == SIGKILL || signal == SIGSTOP)
            signal++;
        if (signal > 64)
            return fail(ErrorKind::kBadImage, task.object(), "has too many signal actions");
        bool is_default = action.sigaction() == 0 && action.flags() == 0 && action.mask() == 0;
        if (is_default)
            continue;
        KernelSigaction kernel{action.sigaction(), action.flags(), action.restorer(), action.mask()};
        ArenaRef where = program.plan().object(kernel);
        if (signal == SIGTRAP)  // ours until the last barrier
            planned.trap_action = where;
        else
            program.call(label, SYS_rt_sigaction, {signal, where, 0, kSigsetSize});
    }
    return {};
}

namespace {

Result<void> plan_interval_timer(const TaskRecord& task, int which,
                                 const images::itimer_entry& timer, Program& program) {
    if (timer.vsec() == 0 && timer.vusec() == 0)
        return {};
    KernelTimes times{timer.isec(), timer.iusec(), timer.vsec(), timer.vusec()};
    program.call(fmt::format("pid {} interval timer {}", task.pid(), which), SYS_setitimer,
                 {which, program.plan().object(times), 0});
    return {};
}

constexpr int kTimerCreateRestoreIds = 77;
constexpr uint32_t kMostTimersByCounting = 4096;

// Without PR_TIMER_CREATE_RESTORE_IDS the kernel numbers timers by counting up from 0: those in
// between are made and deleted.
Result<void> count_up(const TaskRecord& task, uint32_t& next, uint32_t wanted, Program& program) {
    if (wanted < next || wanted > kMostTimersByCounting)
        return fail(ErrorKind::kUnsupported, task.object(),
                    fmt::format("has a timer with id {}, which this kernel cannot make", wanted),
                    "use Linux 6.15 or newer");
    for (; next < wanted; next++) {
        ArenaRef id = program.plan().reserve(4);
        std::string label = fmt::format("pid {} passing timer id {}", task.pid(), next);
        program.call(label, SYS_timer_create, {CLOCK_MONOTONIC, 0, id});
        program.call(label, SYS_timer_delete, {next});
    }
    next = wanted + 1;
    return {};
}

Result<void> plan_posix_timer(const TaskRecord& task, const images::posix_timer_entry& timer,
                              Program& program) {
    std::string label = fmt::format("pid {} timer {}", task.pid(), timer.it_id());
    KernelSigevent event{};
    event.value = timer.sival_ptr();
    event.signo = static_cast<int32_t>(timer.si_signo());
    event.notify = static_cast<int32_t>(timer.it_sigev_notify());
    event.tid = timer.notify_thread_id();
    Plan& plan = program.plan();
    ArenaRef id = plan.object(timer.it_id());
    program.call(label, SYS_timer_create, {timer.clock_id(), plan.object(event), id});
    KernelTimes times{timer.isec(), timer.insec(), timer.vsec(), timer.vnsec()};
    if (timer.vsec() != 0 || timer.vnsec() != 0)
        program.call(label, SYS_timer_settime, {timer.it_id(), 0, plan.object(times), 0});
    return {};
}

}  // namespace

Result<void> plan_timers(const TaskRecord& task, const HostFacts& facts, Program& program) {
    const images::task_timers_entry& timers = task.core.tc().timers();
    if (!task.core.tc().has_timers())
        return {};
    std::string label = fmt::format("pid {} timer ids", task.pid());
    if (timers.posix_size() > 0 && facts.timer_ids)
        program.call(label, SYS_prctl, {kTimerCreateRestoreIds, 1, 0, 0, 0});
    std::map<uint32_t, const images::posix_timer_entry*> by_id;
    for (const images::posix_timer_entry& timer : timers.posix())
        by_id[timer.it_id()] = &timer;
    uint32_t next = 0;
    for (const auto& [id, timer] : by_id) {
        if (!facts.timer_ids)
            CKPT_TRY(count_up(task, next, id, program));
        CKPT_TRY(plan_posix_timer(task, *timer, program));
    }
    if (timers.posix_size() > 0 && facts.timer_ids)
        program.call(label, SYS_prctl, {kTimerCreateRestoreIds, 0, 0, 0, 0});
    CKPT_TRY(plan_interval_timer(task, ITIMER_REAL, timers.real(), program));
    CKPT_TRY(plan_interval_timer(task, ITIMER_VIRTUAL, timers.virt(), program));
    return plan_interval_timer(task, ITIMER_PROF, timers.prof(), program);
}

void plan_raised_limits(const TaskRecord& task, const HostFacts& facts, Program& program) {
    const auto& limits = task.core.tc().rlimits().rlimits();
    for (int i = 0; i < limits.size() && i < static_cast<int>(facts.limits.size()); i++) {
        rlimit raised = facts.limits[static_cast<size_t>(i)];
        if (limits[i].max() <= raised.rlim_max)
            continue;
        raised.rlim_max = limits[i].max();
        program.call(fmt::format("pid {} limit {}", task.pid(), i), SYS_prlimit64,
                     {0, i, program.plan().object(raised), 0});
    }
}

// Raising a hard limit needs CAP_SYS_RESOURCE, so only what differs is set. The soft limit of
// descriptors is set always: the agent raises its own.
Result<void> plan_limits(const TaskRecord& task, const HostFacts& facts, Program& program) {
    const auto& limits = task.core.tc().rlimits().rlimits();
    for (int i = 0; i < limits.size() && i < static_cast<int>(facts.limits.size()); i++) {
        const rlimit& own = facts.limits[static_cast<size_t>(i)];
        rlimit wanted{limits[i].cur(), limits[i].max()};
        bool same = own.rlim_cur == wanted.rlim_cur && own.rlim_max == wanted.rlim_max;
        if (same && i != RLIMIT_NOFILE)
            continue;
        program.call(fmt::format("pid {} limit {}", task.pid(), i), SYS_prlimit64,
                     {0, i, program.plan().object(wanted), 0});
    }
    return {};
}

Result<void> plan_process_flags(const TaskRecord& task, Program& program) {
    const images::task_core_entry& core = task.core.tc();
    std::string label = fmt::format("pid {} process flags", task.pid());
    if (core.personality() != static_cast<uint32_t>(personality(0xffffffff)))
        program.call(label, SYS_personality, {core.personality()});
    if (core.child_subreaper())
        program.call(label, SYS_prctl, {PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0});
    for (unsigned bit = 0; bit < 32; bit++)
        if (core.membarrier_registration_mask() >> bit & 1)
            program.call(label, SYS_membarrier, {1u << bit, 0, 0});
    if (task.mm.has_dumpable())
        program.call(label, SYS_prctl, {PR_SET_DUMPABLE, task.mm.dumpable() == 1, 0, 0, 0});
    return {};
}

namespace {

// Not fatal where `best_effort`: then the file may be read-only for us.
void write_proc(const TaskRecord& task, std::string_view name, const std::string& text,
                bool best_effort, Slot proc, Program& stage) {
    std::string label = fmt::format("pid {} {}", task.pid(), name);
    Plan& plan = stage.plan();
    Slot file = stage.descriptor(
        label, SYS_openat, {proc, plan.string(fmt::format("self/{}", name)), O_WRONLY | O_CLOEXEC});
    if (best_effort) {
        stage.ops().back().flags |= restorer::kIgnoreError;
        stage.try_call(label, SYS_write, {file, plan.string(text), text.size()});
        stage.try_call(label, SYS_close, {file});
        return;
    }
    stage.call(label, SYS_write, {file, plan.string(text), text.size()});
    stage.call(label, SYS_close, {file});
}

}  // namespace

void plan_proc_settings(const TaskRecord& task, const HostFacts& facts, Slot proc, Program& stage) {
    const images::task_core_entry& core = task.core.tc();
    if (core.has_oom_score_adj() && core.oom_score_adj() != facts.oom_score_adj)
        write_proc(task, "oom_score_adj", fmt::format("{}", core.oom_score_adj()), false, proc, stage);
    bool differs = task.extra.has_coredump_filter() &&
                   facts.coredump_filter.value_or(0) != task.extra.coredump_filter();
    if (differs)  // of the address space, but it outlives the mappings
        write_proc(task, "coredump_filter", fmt::format("{:#x}", task.extra.coredump_filter()),
                   !facts.coredump_filter, proc, stage);
    // A login may be set once, then only with CAP_AUDIT_CONTROL: no reason to refuse a restore.
    if (core.has_loginuid() && facts.login && *facts.login != core.loginuid())
        write_proc(task, "loginuid", fmt::format("{}", core.loginuid()), true, proc, stage);
}

void plan_mdwe(const TaskRecord& task, Program& program) {
    constexpr int kSetMdwe = 65;  // PR_SET_MDWE, Linux 6.3
    if (task.extra.mdwe() != 0)
        program.call(fmt::format("pid {} memory deny write execute", task.pid()), SYS_prctl,
                     {kSetMdwe, task.extra.mdwe(), 0, 0, 0});
}

}  // namespace checkpointd
