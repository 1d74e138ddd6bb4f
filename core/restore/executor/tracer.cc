// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/restore/executor/tracer.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "core/base/io.h"
#include "core/kernel/ptrace.h"
#include "core/restore/barriers.h"
#include "core/restore/program/print.h"
#include "restorer/region.h"

namespace checkpointd {

namespace {

constexpr long kFollow = PTRACE_O_EXITKILL | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
                         PTRACE_O_TRACECLONE | PTRACE_O_TRACESYSGOOD;

int event_of(int status) {
    return status >> 16;
}

// A signal that the program itself raised by a fault: it would only fault again.
bool is_fault(int signal) {
    return signal == SIGSEGV || signal == SIGBUS || signal == SIGILL || signal == SIGFPE ||
           signal == SIGSYS;
}

}  // namespace

Result<void> resume(pid_t id, int signal) {
    if (ptrace(PTRACE_CONT, id, 0, signal) < 0 && errno != ESRCH)
        return fail_errno(fmt::format("pid {}", id), "PTRACE_CONT");
    return {};
}

Tracer::Tracer(const RestorePlan& plan) : plan_(plan), numbers_(plan.own_pid_namespace) {
    for (const PlannedTask& task : plan.tasks)
        if (task.zombie)
            zombies_[task.pid] = &task;
    helpers_.insert(plan.helpers.begin(), plan.helpers.end());
}

Tracer::~Tracer() {
    kill_all();
}

Result<void> Tracer::seize_agent(pid_t agent) {
    agent_ = agent;
    add(agent);
    // Without CAP_SYS_ADMIN, or under a filter ourselves, filters of targets cannot be suspended
    // (ptrace(2)); then a restore works as far as the filters allow.
    if (ptrace(PTRACE_SEIZE, agent, 0, kFollow | PTRACE_O_SUSPEND_SECCOMP) == 0)
        return {};
    if (errno != EPERM || ptrace(PTRACE_SEIZE, agent, 0, kFollow) < 0)
        return fail_errno("restore agent", "PTRACE_SEIZE");
    return {};
}

Result<void> Tracer::run(Steps& steps, const std::function<Result<void>(uint64_t)>& at_barrier) {
    while (true) {
        while (!all_stopped())
            CKPT_TRY(wait_for_event());
        if (tracees_.empty())
            return {};
        CKPT_ASSIGN(bool served, serve_one_number(steps));
        if (served)
            continue;
        uint64_t lowest = UINT64_MAX;
        for (const auto& [id, tracee] : tracees_)
            lowest = std::min(lowest, tracee.barrier);
        if (lowest >= kFinished)
            return {};
        CKPT_TRY(release_lowest(steps, at_barrier));
    }
}

// One after the other, while all others stand: those that we make must not take each other's
// numbers.
Result<bool> Tracer::serve_one_number(Steps& steps) {
    for (auto& [id, tracee] : tracees_) {
        if (tracee.wants == 0)
            continue;
        if (!std::exchange(has_steered_, true))
            CKPT_TRY(steps.enter("restore.thread-numbers"));
        aimed_at_ = std::exchange(tracee.wants, 0);
        CKPT_TRY(steering_.aim(aimed_at_));
        tracee.stopped = false;
        CKPT_TRY(resume(id));
        return true;
    }
    return false;
}

bool Tracer::all_stopped() const {
    for (const auto& [id, tracee] : tracees_)
        if (!tracee.stopped)
            return false;
    return true;
}

Result<void> Tracer::release_lowest(Steps& steps,
                                    const std::function<Result<void>(uint64_t)>& at_barrier) {
    uint64_t lowest = UINT64_MAX;
    for (const auto& [id, tracee] : tracees_)
        lowest = std::min(lowest, tracee.barrier);
    aimed_at_ = 0;
    CKPT_TRY(steps.enter(step_after(lowest)));
    if (lowest == kPluginFilesAgain)
        CKPT_TRY(check_progress());
    CKPT_TRY(at_barrier(lowest));
    for (auto& [id, tracee] : tracees_) {
        if (tracee.barrier != lowest)
            continue;
        tracee.stopped = false;
        CKPT_TRY(resume(id));
    }
    return {};
}

// A file that still waits after a round in which no other came would wait for ever.
Result<void> Tracer::check_progress() {
    uint64_t waiting = 0;
    for (const auto& [id, tracee] : tracees_)
        waiting += tracee.barrier == kPluginFilesAgain ? tracee.waiting : 0;
    if (std::exchange(waiting_, waiting) != waiting)
        return {};
    std::vector<Error> errors;
    for (const auto& [id, tracee] : tracees_)
        if (tracee.barrier == kPluginFilesAgain)
            errors.push_back(Error{ErrorKind::kInternal, fmt::format("{} file {}", name_of(id), tracee.first_file),
                                   "its plugin waits for another file, and none is left that could still come",
                                   {}, EAGAIN, {}});
    return all_blockers("plugins' files", "wait for each other", std::move(errors));
}

Result<void> Tracer::wait_for_event() {
    CKPT_ASSIGN(pid_t id, next_waitable());
    CKPT_ASSIGN(int status, reap_or_stop(id));
    return handle(id, status);
}

void Tracer::add(pid_t id) {
    numbers_.learn(id);
    std::lock_guard guard(lock_);
    tracees_[id].told = true;
}

// What waitpid tells of one that has something to tell.
Result<int> Tracer::reap_or_stop(pid_t id) {
    if (!tracees_.contains(id))
        numbers_.learn(id);
    std::lock_guard guard(lock_);
    int status = 0;
    if (waitpid(id, &status, __WALL) < 0)
        return fail_errno(name_of(id), "waitpid");
    auto [tracee, is_new] = tracees_.try_emplace(id);
    if (WIFEXITED(status) || WIFSIGNALED(status)) {
        if (!tracee->second.told)
            ended_untold_.insert(id);
        tracees_.erase(tracee);
    }
    return status;
}

// Should we die it dies as well, so there is nothing for a journal.
Result<void> Tracer::let_run(pid_t pid, pid_t tid) {
    if (auto running = loose_.find(tid); running != loose_.end())
        return running->second.keep_running();
    CKPT_TRY(ptrace_set_options(tid, PTRACE_O_EXITKILL));
    CKPT_ASSIGN(LooseThread thread, LooseThread::let_run(pid, tid, nullptr));
    loose_.emplace(tid, std::move(thread));
    return {};
}

Result<void> Tracer::stop_again(pid_t tid, std::chrono::steady_clock::time_point deadline) {
    auto running = loose_.find(tid);
    if (running == loose_.end())
        return {};
    CKPT_TRY(running->second.stop(deadline));
    loose_.erase(running);
    return ptrace_set_options(tid, kFollow);
}

void Tracer::kill_now() {
    std::lock_guard guard(lock_);
    for (const auto& [id, tracee] : tracees_)
        kill(id, SIGKILL);
}

// Who has something to tell. Other children of this thread are left alone: their ends are not ours to
// take, so while one of them waits to be reaped we ask each of ours in turn.
Result<pid_t> Tracer::next_waitable() {
    while (true) {
        siginfo_t info{};
        if (waitid(P_ALL, 0, &info, WEXITED | WSTOPPED | WNOWAIT | __WALL | __WNOTHREAD) < 0) {
            if (errno == EINTR)
                continue;
            return fail_errno("restored tasks", "waitid");
        }
        if (is_ours(info.si_pid))
            return info.si_pid;
        for (const auto& [id, tracee] : tracees_) {
            siginfo_t own{};
            if (waitid(P_PID, static_cast<id_t>(id), &own,
                       WEXITED | WSTOPPED | WNOWAIT | WNOHANG | __WALL | __WNOTHREAD) == 0 &&
                own.si_pid == id)
                return id;
        }
        poll(nullptr, 0, 1);
    }
}

// A new task may stop before its parent's fork event has told us its number.
bool Tracer::is_ours(pid_t id) const {
    return tracees_.contains(id) || is_traced_by_us(id);
}

Result<void> Tracer::handle(pid_t id, int status) {
    if (WIFEXITED(status) || WIFSIGNALED(status))
        return handle_end(id, status);
    return handle_stop(id, status);
}

Result<void> Tracer::handle_end(pid_t id, int status) {
    auto zombie = zombies_.find(numbers_.inner(id));
    if (zombie != zombies_.end()) {
        constexpr int kCoreDumped = 0x80;  // whether a core file was written then does not come back
        if ((status | kCoreDumped) != (zombie->second->exit_status | kCoreDumped))
            return fail(ErrorKind::kInternal, name_of(id), "a zombie ended in another way");
        ended_zombies_.insert(zombie->first);
        return {};
    }
    if (may_end(id) && WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return {};
    std::string how = WIFSIGNALED(status) ? fmt::format("killed by signal {}", WTERMSIG(status))
                                          : fmt::format("exited with {}", WEXITSTATUS(status));
    return fail(ErrorKind::kGone, name_of(id), "ended while it was restored: " + how);
}

// A thread that got another number than it should have had gives up. That may be one which a later
// thread is to have.
bool Tracer::may_end(pid_t id) const {
    bool is_stray = aimed_at_ != 0 && numbers_.inner(id) != aimed_at_;
    return id == agent_ || helpers_.contains(numbers_.inner(id)) || is_stray;
}

Result<void> Tracer::handle_stop(pid_t id, int status) {
    switch (event_of(status)) {
    case 0:
        break;
    case PTRACE_EVENT_FORK:
    case PTRACE_EVENT_VFORK:
    case PTRACE_EVENT_CLONE:
        return handle_birth(id);
    default:
        return resume(id);
    }
    if (WSTOPSIG(status) == SIGTRAP)
        return handle_trap(id);
    return handle_signal(id, WSTOPSIG(status));
}

Result<void> Tracer::handle_birth(pid_t maker) {
    steering_.release();
    unsigned long child = 0;
    // The child may have ended already (a zombie, a stray): then it must not come back to the list.
    bool told = ptrace(PTRACE_GETEVENTMSG, maker, 0, &child) == 0;
    if (told && child != 0 && ended_untold_.erase(static_cast<pid_t>(child)) == 0)
        add(static_cast<pid_t>(child));
    return resume(maker);
}

Result<void> Tracer::handle_trap(pid_t id) {
    user_regs_struct regs{};
    if (ptrace(PTRACE_GETREGS, id, 0, &regs) < 0)
        return fail_errno(name_of(id), "PTRACE_GETREGS");
    if (regs.rax == (restorer::kStopMark | restorer::kAtBarrier)) {
        Tracee& tracee = tracees_[id];
        tracee.stopped = true;
        tracee.barrier = regs.rdi;
        tracee.waiting = regs.rsi;
        tracee.first_file = regs.rdx;
        return {};
    }
    if (regs.rax == (restorer::kStopMark | restorer::kWantsNumber)) {
        tracees_[id].stopped = true;
        tracees_[id].wants = static_cast<pid_t>(regs.rdi);
        return {};
    }
    if (regs.rax == (restorer::kStopMark | restorer::kFailed))
        return tl::unexpected(
            operation_error(name_of(id), regs.rdi, regs.rsi, static_cast<int>(regs.rdx)));
    return fail(ErrorKind::kInternal, name_of(id), fmt::format("trapped at {:#x}", regs.rip));
}

Error Tracer::operation_error(const std::string& object, uint64_t program, uint64_t index,
                              int code) const {
    const auto& programs = plan_.programs.programs();
    if (program >= programs.size() || index >= programs[program].ops().size())
        return Error{ErrorKind::kInternal, object, "an unknown operation failed", {}, code, {}};
    const restorer::Op& op = programs[program].ops()[index];
    Error error = system_error(std::string(plan_.programs.text_at(op.label)),
                               fmt::format("{} (operation {} of {})", print_op(plan_.programs, op),
                                           index, programs[program].name()),
                               code);
    if ((op.flags & restorer::kExpectExact) && code == ERANGE) {
        error.kind = ErrorKind::kConflict;
        error.errno_code = 0;
        error.message = "is not what it was at the checkpoint: " + error.message;
    }
    bool makes_task = op.code == restorer::OpCode::kForkTask || op.code == restorer::OpCode::kThread;
    if (makes_task && code == EEXIST) {
        error.kind = ErrorKind::kConflict;
        error.remedy = "the PID was taken meanwhile; try again";
    }
    if (error.object.empty())
        error.object = object;
    return error;
}

Result<void> Tracer::handle_signal(pid_t id, int signal) {
    if (zombies_.contains(numbers_.inner(id)))
        return resume(id, signal);  // the signal of which it died
    if (!is_fault(signal))
        return resume(id);
    user_regs_struct regs{};
    ptrace(PTRACE_GETREGS, id, 0, &regs);
    siginfo_t info{};
    ptrace(PTRACE_GETSIGINFO, id, 0, &info);
    return fail(ErrorKind::kInternal, name_of(id),
                fmt::format("{} at {:#x}, address {}", strsignal(signal), regs.rip,
                            fmt::ptr(info.si_addr)));
}

std::string Tracer::name_of(pid_t id) const {
    if (id == agent_)
        return "restore agent";
    const pid_t number = numbers_.inner(id);
    if (helpers_.contains(number))
        return fmt::format("temporary leader {}", number);
    for (const PlannedTask& task : plan_.tasks)
        for (const PlannedThread& thread : task.threads)
            if (thread.tid == number)
                return fmt::format("pid {} ({})", number, task.name);
    return fmt::format("pid {}", id);
}

Result<void> Tracer::check_complete() const {
    size_t threads = 0;
    for (const PlannedTask& task : plan_.tasks) {
        if (task.zombie && !ended_zombies_.contains(task.pid))
            return fail(ErrorKind::kInternal, fmt::format("pid {}", task.pid), "is not a zombie");
        for (const PlannedThread& thread : task.threads)
            if (!tracees_.contains(number_here(thread.tid)))
                return fail(ErrorKind::kInternal, fmt::format("tid {}", thread.tid),
                            "was not restored");
        threads += task.threads.size();
    }
    if (threads != tracees_.size())
        return fail(ErrorKind::kInternal, "restored tasks", "there are more than were planned");
    return {};
}

// The stops of PTRACE_SYSCALL are no signals, so they do not touch the handler of SIGTRAP, which is
// already the program's own, as int3 or a single step would.
Result<int64_t> Tracer::remote_call(pid_t tid, uint64_t instruction, long nr,
                                    const std::array<uint64_t, 6>& args) {
    user_regs_struct regs{};
    if (ptrace(PTRACE_GETREGS, tid, 0, &regs) < 0)
        return fail_errno(name_of(tid), "PTRACE_GETREGS");
    regs.rip = instruction;
    regs.rax = static_cast<uint64_t>(nr);
    regs.orig_rax = static_cast<uint64_t>(-1);
    regs.rdi = args[0], regs.rsi = args[1], regs.rdx = args[2];
    regs.r10 = args[3], regs.r8 = args[4], regs.r9 = args[5];
    if (ptrace(PTRACE_SETREGS, tid, 0, &regs) < 0)
        return fail_errno(name_of(tid), "PTRACE_SETREGS");
    CKPT_TRY(until_syscall_stop(tid));
    CKPT_TRY(until_syscall_stop(tid));
    if (ptrace(PTRACE_GETREGS, tid, 0, &regs) < 0)
        return fail_errno(name_of(tid), "PTRACE_GETREGS");
    return static_cast<int64_t>(regs.rax);
}

Result<void> Tracer::until_syscall_stop(pid_t tid) {
    if (ptrace(PTRACE_SYSCALL, tid, 0, 0) < 0)
        return fail_errno(name_of(tid), "PTRACE_SYSCALL");
    siginfo_t info{};
    if (waitid(P_PID, static_cast<id_t>(tid), &info, WEXITED | WSTOPPED | WNOWAIT | __WALL) < 0)
        return fail_errno(name_of(tid), "waitid");
    CKPT_ASSIGN(int status, reap_or_stop(tid));
    if (WIFEXITED(status) || WIFSIGNALED(status))
        return handle_end(tid, status);
    if (WSTOPSIG(status) != (SIGTRAP | 0x80))
        return fail(ErrorKind::kInternal, name_of(tid),
                    fmt::format("stopped with status {:#x} in a remote call", status));
    return {};
}

// First nobody dies with us any more, then everybody runs: so that our death in between leaves no half
// of a forest, but for the few microseconds of the first loop.
Result<void> Tracer::let_go() {
    for (const auto& [id, tracee] : tracees_)
        if (ptrace(PTRACE_SETOPTIONS, id, 0, 0) < 0)
            return fail_errno(name_of(id), "PTRACE_SETOPTIONS");
    std::vector<Error> errors;
    for (const auto& [id, tracee] : tracees_)
        if (ptrace(PTRACE_DETACH, id, 0, 0) < 0)
            errors.push_back(system_error(name_of(id), "PTRACE_DETACH", errno));
    tracees_.clear();
    released_ = true;
    return all_blockers("restored tasks", "could not be let go", std::move(errors));
}

// A task that was forked when we gave up is ours, but nobody told us of it: its maker may be dead and
// reaped before it ever stopped. Its number is one of the plan's, which nobody else had when we began, or
// in a PID namespace of its own any number.
void Tracer::find_untold() {
    if (numbers_.differ()) {
        for (pid_t id : find_tracees())
            tracees_.try_emplace(id);
        return;
    }
    auto look = [this](pid_t id) {
        siginfo_t info{};
        int flags = WEXITED | WSTOPPED | WNOWAIT | WNOHANG | __WALL | __WNOTHREAD;
        if (waitid(P_PID, static_cast<id_t>(id), &info, flags) == 0)
            tracees_.try_emplace(id);
    };
    for (pid_t id : helpers_)
        look(id);
    for (const PlannedTask& task : plan_.tasks) {
        look(task.pid);
        for (const PlannedThread& thread : task.threads)
            look(thread.tid);
    }
}

// A maker that is reaped makes nobody any more, so when there is none left and nobody untold, that is all.
void Tracer::kill_all() {
    if (agent_ < 0 || released_)
        return;
    for (find_untold(); !tracees_.empty(); find_untold()) {
        bool progress = false;
        for (auto it = tracees_.begin(); it != tracees_.end();) {
            pid_t id = it->first;
            kill(id, SIGKILL);
            int status = 0;
            pid_t got = waitpid(id, &status, __WALL | WNOHANG);
            bool ended = got == id && (WIFEXITED(status) || WIFSIGNALED(status));
            bool unknown = got < 0 && errno == ECHILD;
            progress = progress || got == id || unknown;
            it = ended || unknown ? tracees_.erase(it) : std::next(it);
        }
        if (!progress)
            poll(nullptr, 0, 1);
    }
}

}  // namespace checkpointd
