// SPDX-License-Identifier: LGPL-2.1-or-later
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <elf.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sys/ptrace.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <fmt/core.h>

#include "core/base/io.h"
#include "core/base/pipe.h"
#include "core/restore/barriers.h"
#include "core/restore/executor/region.h"
#include "core/restore/executor/tracer.h"
#include "core/restore/executor/watchdog.h"
#include "core/restore/restore.h"
#include "plugins/host/plugins.h"
#include "restorer/interpreter.h"

namespace checkpointd {

namespace {

using Clock = std::chrono::steady_clock;

uint64_t us_since(Clock::time_point start) {
    auto passed = Clock::now() - start;
    return static_cast<uint64_t>(
        std::chrono::duration_cast<std::chrono::microseconds>(passed).count());
}

// All signals but SIGTRAP blocked for a while: the agent is born with this mask.
class SignalsBlocked {
  public:
    SignalsBlocked() {
        sigset_t all;
        sigfillset(&all);
        sigdelset(&all, SIGTRAP);
        pthread_sigmask(SIG_SETMASK, &all, &saved_);
    }
    SignalsBlocked(const SignalsBlocked&) = delete;
    SignalsBlocked& operator=(const SignalsBlocked&) = delete;
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &saved_, nullptr); }

  private:
    sigset_t saved_;
};

// The C library registered a restartable sequence area for our thread, and fork keeps it; the kernel
// would write to it after its memory is gone. Every C library registers 32 bytes or the size it
// announces.
void unregister_rseq() {
    auto* area = static_cast<char*>(__builtin_thread_pointer()) + __rseq_offset;
    for (unsigned size : {32u, __rseq_size, 28u, 20u})
        if (syscall(SYS_rseq, area, size, RSEQ_FLAG_UNREGISTER, RSEQ_SIG) == 0)
            return;
}

// What the agent does. It is a copy of one thread of a threaded process: no locks, no allocation.
[[noreturn]] void run_agent(restorer::RegionHeader& header, uint32_t program, int gate_read,
                            int gate_write) {
    char byte = 0;
    close(gate_write);
    if (read(gate_read, &byte, 1) != 1)  // the worker died before it could trace us
        _exit(1);
    unregister_rseq();
    restorer::Interpreter(header, restorer::Place::kStage).run_to_end(program);
}

Result<void> start_agent(const RestoreRequest& request, const RestorePlan& plan, Tracer& tracer,
                         Region& region) {
    CKPT_ASSIGN(Pipe gate, make_pipe("restore agent"));
    clone_args args{};
    args.flags = CLONE_CLEAR_SIGHAND;
    bool sibling = request.parent == RestoreRequest::Parent::kSibling;
    if (sibling)
        args.flags |= CLONE_PARENT;
    args.exit_signal = sibling ? 0 : SIGCHLD;
    if (request.cgroup_fd >= 0) {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = static_cast<uint64_t>(request.cgroup_fd);
    }
    SignalsBlocked blocked;
    long agent = syscall(SYS_clone3, &args, sizeof(args));
    if (agent < 0)
        return fail_errno("restore agent", "clone3");
    if (agent == 0)
        run_agent(region.header(), plan.agent_program, gate.read_end.get(), gate.write_end.get());
    CKPT_TRY(tracer.seize_agent(static_cast<pid_t>(agent)));
    char go = 1;
    return write_all(gate.write_end.get(), &go, 1, "restore agent");
}

Result<void> set_regset(pid_t tid, int set, const std::vector<std::byte>& content,
                        const char* name) {
    iovec vector{const_cast<std::byte*>(content.data()), content.size()};
    if (ptrace(PTRACE_SETREGSET, tid, set, &vector) < 0)
        return fail_errno(fmt::format("tid {}", tid), fmt::format("PTRACE_SETREGSET {}", name));
    return {};
}

Result<void> set_thread_state(pid_t tid, const PlannedThread& thread) {
    if (!thread.xstate.empty())
        CKPT_TRY(set_regset(tid, NT_X86_XSTATE, thread.xstate, "extended state"));
    CKPT_TRY(set_regset(tid, NT_PRSTATUS, thread.registers, "registers"));
    if (thread.rseq_cs != 0) {
        constexpr uint64_t kCsOffset = 8;  // offsetof(struct rseq, rseq_cs)
        uint64_t value = thread.rseq_cs;
        iovec from{&value, sizeof(value)};
        iovec to{reinterpret_cast<void*>(thread.rseq + kCsOffset), sizeof(value)};
        if (process_vm_writev(tid, &from, 1, &to, 1, 0) != sizeof(value))
            return fail_errno(fmt::format("tid {}", thread.tid), "restartable sequence");
    }
    if (ptrace(static_cast<__ptrace_request>(PTRACE_SETSIGMASK), tid, sizeof(uint64_t),
               &thread.signal_mask) < 0)
        return fail_errno(fmt::format("tid {}", thread.tid), "PTRACE_SETSIGMASK");
    return {};
}

// The region has served: the task itself unmaps it, by the last system call that is not its own.
Result<void> leave_region(Tracer& tracer, const RestorePlan& plan, const PlannedTask& task,
                          const Region& region) {
    uint64_t instruction = region.syscall_instruction();
    const pid_t id = tracer.number_here(task.pid);
    std::string object = fmt::format("pid {} ({})", task.pid, task.name);
    if (task.trap_action) {
        CKPT_ASSIGN(
            int64_t set,
            tracer.remote_call(id, instruction, SYS_rt_sigaction,
                               {SIGTRAP, region.arena() + task.trap_action->offset, 0, 8, 0, 0}));
        if (set < 0)
            return fail_errno(object, "rt_sigaction of SIGTRAP", static_cast<int>(-set));
    }
    CKPT_ASSIGN(int64_t unmapped, tracer.remote_call(id, instruction, SYS_munmap,
                                                     {plan.region_base, plan.region_size, 0, 0, 0,
                                                      0}));
    if (unmapped < 0)
        return fail_errno(object, "munmap of the restore region", static_cast<int>(-unmapped));
    return {};
}

Result<void> finish_task(Tracer& tracer, const RestorePlan& plan, const PlannedTask& task,
                         const Region& region) {
    if (task.zombie)
        return {};
    CKPT_TRY(leave_region(tracer, plan, task, region));
    for (const PlannedThread& thread : task.threads)
        CKPT_TRY(set_thread_state(tracer.number_here(thread.tid), thread));
    return {};
}

// What only we may do to a task, while it stands: it may have entered a user namespace, in which it
// has no say over the machine's resources.
Result<void> run_outside(const RestorePlan& plan, const Tracer& tracer, Region& region) {
    restorer::Outcome outcome =
        restorer::Interpreter(region.header(), restorer::Place::kStage).run(plan.outside_program);
    if (outcome.error != 0)
        return tl::unexpected(
            tracer.operation_error("restore", plan.outside_program, outcome.op, outcome.error));
    return {};
}

Result<void> bring_to_last_barrier(const RestoreRequest& request, const RestorePlan& plan,
                                   Tracer& tracer, Region& region) {
    auto at_barrier = [&](uint64_t barrier) {
        if (barrier == kStagePlaced && request.plugins)
            request.plugins->tasks_are_past();
        return barrier == kThreadsReady ? run_outside(plan, tracer, region) : Result<void>();
    };
    CKPT_TRY(tracer.run(request.steps, at_barrier));
    CKPT_TRY(tracer.check_complete());
    CKPT_TRY(request.steps.enter("restore.registers"));
    for (const PlannedTask& task : plan.tasks)
        CKPT_TRY(finish_task(tracer, plan, task, region));
    return {};
}

class TracedThreads : public ThreadControl {
  public:
    explicit TracedThreads(Tracer& tracer) : tracer_(tracer) {}
    int run(pid_t pid, pid_t tid) override { return errno_of(tracer_.let_run(pid, tid)); }
    int hold(pid_t, pid_t tid, Clock::time_point deadline) override {
        return errno_of(tracer_.stop_again(tid, deadline));
    }

  private:
    Tracer& tracer_;
};

Clock::time_point deadline_of(const RestoreRequest& request) {
    return request.deadline.value_or(Clock::time_point::max());
}

Result<void> prepare_devices(const RestoreRequest& request) {
    if (!request.plugins || request.plugins->empty())
        return {};
    CKPT_TRY(request.steps.enter("restore.devices"));
    return request.plugins->prepare({}, nullptr, std::min(request.steps.deadline(), deadline_of(request)));
}

// The tasks have their memory and stand. Nothing comes alive by what was read, no queue of a device and no thread that its
// driver needs, before all of it is known to be good. A device that does not come back ends the restore.
Result<void> bring_devices_back(const RestoreRequest& request, const std::vector<pid_t>& pids, Tracer& tracer) {
    const bool has_devices = request.plugins && !request.plugins->empty();
    if (has_devices) {
        CKPT_TRY(request.steps.enter("restore.complete-devices"));
        CKPT_TRY(request.plugins->complete(request.steps.deadline()));
    }
    if (request.check_memory)
        CKPT_TRY(request.check_memory());
    if (!has_devices)
        return {};
    CKPT_TRY(request.steps.enter("restore.resume-devices"));
    TracedThreads threads(tracer);
    return request.plugins->resume(pids, &threads, request.steps.deadline());
}

Error too_late(Error last) {
    return Error{ErrorKind::kTimeout, "restore", "the deadline of the restore passed",
                 "allow more time, or look for a file system that does not answer", 0,
                 {std::move(last)}};
}

// Who hangs until the deadline is killed.
Result<void> build_tasks(const RestoreRequest& request, const RestorePlan& plan, Tracer& tracer,
                         Region& region) {
    Watchdog watchdog(request.deadline, [&] { tracer.kill_now(); });
    if (request.plugins)
        request.plugins->start_transfer(Clock::time_point::max());  // complete() has one, once the tasks stand
    auto built = bring_to_last_barrier(request, plan, tracer, region);
    if (!built && watchdog.has_barked())
        return tl::unexpected(too_late(std::move(built).error()));
    return built;
}

}  // namespace

class BuiltForest::Held {
  public:
    Held(std::shared_ptr<const RestorePlan> run, Steps& watcher)
        : plan(std::move(run)), tracer(*plan), steps(watcher) {}

    // Everybody is there.
    void settle() {
        for (const PlannedTask& task : plan->tasks) {
            const pid_t pid = tracer.number_here(task.pid);
            pids.push_back(pid);
            if (!task.zombie)
                living.push_back(pid);
            if (task.stop_signal != 0)
                late_signals.emplace_back(pid, task.stop_signal);
            for (int signal : task.late_signals)
                late_signals.emplace_back(pid, signal);
        }
        main_pid = plan->roots.empty() ? -1 : tracer.number_here(plan->roots.front());
    }

    std::shared_ptr<const RestorePlan> plan;
    Tracer tracer;
    Steps& steps;
    std::vector<pid_t> pids;
    std::vector<pid_t> living;  // of them
    std::vector<std::pair<pid_t, int>> late_signals;
    pid_t main_pid = -1;
};

BuiltForest::BuiltForest(std::unique_ptr<Held> held) : held_(std::move(held)) {}
BuiltForest::BuiltForest(BuiltForest&&) noexcept = default;
BuiltForest& BuiltForest::operator=(BuiltForest&&) noexcept = default;
BuiltForest::~BuiltForest() = default;

const std::vector<pid_t>& BuiltForest::pids() const {
    return held_->pids;
}

pid_t BuiltForest::main_pid() const {
    return held_->main_pid;
}

const std::vector<pid_t>& BuiltForest::roots() const {
    return held_->plan->roots;
}

Result<void> BuiltForest::commit() {
    CKPT_TRY(held_->steps.enter("restore.commit"));
    // Sent while they are held, these stay pending and count from the first instruction on.
    for (auto [pid, signal] : held_->late_signals)
        if (kill(pid, signal) < 0)
            return fail_errno(fmt::format("pid {}", pid), fmt::format("signal {}", signal));
    return held_->tracer.let_go();
}

Result<BuiltForest> execute_plan(const RestoreRequest& request,
                                 std::shared_ptr<const RestorePlan> shared, RestoreStats& stats) {
    auto start = Clock::now();
    const RestorePlan& plan = *shared;
    CKPT_TRY(request.steps.enter("restore.check"));
    if (!plan.own_pid_namespace)
        CKPT_TRY(check_conflicts(plan));
    CKPT_TRY(prepare_devices(request));
    auto held = std::make_unique<BuiltForest::Held>(std::move(shared), request.steps);
    CKPT_TRY(request.steps.enter("restore.agent"));
    {
        CKPT_ASSIGN(Region region, Region::map(plan, request.hooks, request.plugins));
        CKPT_TRY(start_agent(request, plan, held->tracer, region));
        auto built = build_tasks(request, plan, held->tracer, region);
        if (built) {
            held->settle();
            built = bring_devices_back(request, held->living, held->tracer);
        }
        if (!built && request.plugins)
            request.plugins->cancel_messages();
        CKPT_TRY(std::move(built));
    }
    stats.tasks = plan.tasks.size();
    for (const PlannedTask& task : plan.tasks)
        stats.threads += task.threads.size();
    for (const Program& program : plan.programs.programs())
        stats.operations += program.ops().size();
    stats.bytes_read = plan.memory_bytes;
    stats.build_us = us_since(start);
    return BuiltForest(std::move(held));
}

Result<BuiltForest> build_forest(const RestoreRequest& request, RestoreStats& stats) {
    auto start = Clock::now();
    CKPT_TRY(request.steps.enter("restore.plan"));
    CKPT_ASSIGN(std::unique_ptr<RestorePlan> plan, plan_restore(request));
    stats.read_us = us_since(start);
    return execute_plan(request, std::move(plan), stats);
}

}  // namespace checkpointd
