// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/inject/loose_thread.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <fmt/core.h>
#include <linux/ptrace.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <utility>

#include "core/inject/stops.h"
#include "core/kernel/proc_status.h"
#include "core/kernel/ptrace.h"
#include "core/transaction/recorded_process.h"
#include "core/transaction/undo_kinds.h"

namespace checkpointd {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kRestoreMask = "core.restore-mask";
// For an undo: a thread may be in a call of its driver that nothing interrupts.
constexpr std::chrono::seconds kPatience{20};
constexpr std::chrono::microseconds kPoll{50};
constexpr std::chrono::milliseconds kSettleTime{500};

constexpr uint64_t bit(int signal) { return uint64_t{1} << (signal - 1); }
constexpr uint64_t kFaults = bit(SIGSEGV) | bit(SIGBUS) | bit(SIGFPE) | bit(SIGILL) | bit(SIGTRAP) | bit(SIGSYS);
// Out of a mask the kernel leaves the first two, and glibc the others, which are its own (nptl/pthread_sigmask.c).
constexpr uint64_t kNeverBlocked = bit(SIGKILL) | bit(SIGSTOP) | bit(32) | bit(33);
constexpr uint64_t kBlocked = ~(kFaults | kNeverBlocked);

Error gone(const std::string& object) {
    return {ErrorKind::kGone, object, "ended while it ran for its driver", {}, 0, {}};
}

bool is_gone(const Result<void>& result) { return !result && result.error().kind == ErrorKind::kGone; }

// A tracer that has died may still have it: its locks are gone before its tracees are (do_exit() in kernel/exit.c).
Result<void> seize_in_time(pid_t tid, Clock::time_point deadline) {
    for (;;) {
        auto seized = ptrace_seize(tid, 0);
        if (seized || seized.error().errno_code != EPERM || Clock::now() >= deadline)
            return seized;
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
}

bool is_traced_by_us(pid_t tid) {
    auto status = read_status(tid);
    return status && status->tracer_pid == gettid();
}

}  // namespace

Result<void> LooseThread::give_back(const RecordedProcess& recorded, uint64_t mask) {
    const auto deadline = Clock::now() + kPatience;
    if (!is_traced_by_us(recorded.pid))
        CKPT_TRY(seize_in_time(recorded.pid, deadline));
    CKPT_ASSIGN(const uint64_t start, process_start_time(recorded.pid));
    LooseThread thread(recorded.pid, recorded.pid, mask, nullptr);
    if (start == recorded.start)
        CKPT_TRY(thread.stop(deadline));
    detach_thread(recorded.pid);
    return {};
}

// In a thread of its own, but where this one traces it: one that does not stop in time is let go with that.
Result<void> LooseThread::undo(const UndoArgs& args) {
    uint64_t mask = 0;
    CKPT_ASSIGN(const auto recorded, RecordedProcess::parse(args, 0));
    if (args.size() != 3 || std::from_chars(args[2].data(), args[2].data() + args[2].size(), mask, 16).ec != std::errc())
        return fail(ErrorKind::kInternal, kRestoreMask, "wrong arguments in the journal");
    CKPT_ASSIGN(const bool lives, recorded.lives());
    if (!lives)
        return {};
    Result<void> done;
    if (is_traced_by_us(recorded.pid))
        done = give_back(recorded, mask);
    else
        std::jthread([&] { done = give_back(recorded, mask); }).join();
    return is_gone(done) ? Result<void>() : done;
}

Result<LooseThread> LooseThread::let_run(pid_t pid, pid_t tid, Journal* journal) {
    CKPT_ASSIGN(const uint64_t mask, ptrace_get_sigmask(tid));
    LooseThread thread(pid, tid, mask, journal);
    if (journal != nullptr) {
        UndoArgs args;
        CKPT_TRY(RecordedProcess::append(args, tid));
        args.push_back(fmt::format("{:x}", mask));
        CKPT_ASSIGN(thread.record_, journal->add(kRestoreMask, std::move(args)));
    }
    CKPT_TRY(ptrace_set_sigmask(tid, kBlocked | mask));
    CKPT_TRY(ptrace_cont(tid));
    return thread;
}

Result<bool> LooseThread::look() {
    int status = 0;
    const pid_t got = waitpid(tid_, &status, __WALL | WNOHANG);
    if (got == 0)
        return false;
    if (got < 0 || !WIFSTOPPED(status))
        return tl::unexpected(gone(name_of_thread(pid_, tid_)));
    const int event = status >> 16, signal = WSTOPSIG(status);
    if (event == PTRACE_EVENT_STOP)
        return true;
    // Nothing can block SIGSTOP. It would stop what has to work; and all others stand anyhow.
    const bool is_stop = event == 0 && signal == SIGSTOP;
    keeps_stop_ |= is_stop;
    CKPT_TRY(ptrace_cont(tid_, event != 0 || is_stop ? 0 : signal));
    return false;
}

Result<void> LooseThread::keep_running() {
    CKPT_ASSIGN(const bool stands, look());
    return stands ? ptrace_cont(tid_) : Result<void>();
}

Result<void> LooseThread::stand(Clock::time_point deadline) {
    CKPT_ASSIGN(bool stands, look());
    if (!stands)
        CKPT_TRY(ptrace_interrupt(tid_));
    while (!stands) {
        CKPT_ASSIGN(stands, look());
        if (!stands && Clock::now() >= deadline)
            return fail(ErrorKind::kTimeout, name_of_thread(pid_, tid_), "does not stop again");
        if (!stands)
            std::this_thread::sleep_for(kPoll);
    }
    repair_wait(tid_);
    return {};
}

// What is not ours the thread has set itself. One that has blocked more than we for a moment, as the C library does while
// it makes a thread, will set what it found, so it goes on until it has.
Result<void> LooseThread::stop(Clock::time_point deadline) {
    const auto settled = std::min(deadline, Clock::now() + kSettleTime);
    const uint64_t ours = kBlocked | mask_;
    CKPT_TRY(stand(deadline));
    CKPT_ASSIGN(uint64_t now, ptrace_get_sigmask(tid_));
    while ((now & ours) == ours && now != ours && Clock::now() < settled) {
        CKPT_TRY(ptrace_cont(tid_));
        std::this_thread::sleep_for(kPoll);
        CKPT_TRY(stand(deadline));
        CKPT_ASSIGN(now, ptrace_get_sigmask(tid_));
    }
    if ((now & ours) == ours)
        CKPT_TRY(ptrace_set_sigmask(tid_, mask_ | (now & ~ours)));
    CKPT_TRY(pass_stop_on());
    return forget();
}

// A SIGCONT that came later is pending yet, because it was blocked, and the stop that it ended must not come back.
Result<void> LooseThread::pass_stop_on() {
    if (!std::exchange(keeps_stop_, false))
        return {};
    for (bool shared : {true, false}) {
        CKPT_ASSIGN(const auto pending, ptrace_pending_signals(tid_, shared));
        for (const siginfo_t& signal : pending)
            if (signal.si_signo == SIGCONT)
                return {};
    }
    if (::kill(pid_, SIGSTOP) != 0 && errno != ESRCH)
        return fail_errno(name_of_thread(pid_, tid_), "cannot be stopped by the SIGSTOP that it got");
    return {};
}

Result<void> LooseThread::forget() { return journal_ != nullptr ? journal_->drop(record_) : Result<void>(); }

void add_mask_undo_kind(UndoTable& table) {
    table.add(kRestoreMask, LooseThread::undo, [](const UndoArgs&) { return kPatience; });
}

}  // namespace checkpointd
