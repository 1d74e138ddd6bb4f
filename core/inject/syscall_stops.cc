// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/inject/syscall_stops.h"

#include <fmt/core.h>
#include <sys/wait.h>
#include <cerrno>
#include <csignal>

#include "core/arch/x86_64/restart.h"

namespace checkpointd {
namespace {

constexpr int64_t kMaxErrno = 4095;

}  // namespace

user_regs_struct with_call(user_regs_struct regs, uint64_t rip, long nr, const RawArgs& args) {
    regs.rip = rip;
    regs.orig_rax = ~uint64_t{0};  // the kernel must not see an interrupted call here
    regs.rax = static_cast<uint64_t>(nr);
    regs.rdi = args[0];
    regs.rsi = args[1];
    regs.rdx = args[2];
    regs.r10 = args[3];
    regs.r8 = args[4];
    regs.r9 = args[5];
    return regs;
}

Result<int> next_stop(pid_t tid, const std::string& object) {
    int status = 0;
    pid_t got = 0;
    do
        got = waitpid(tid, &status, __WALL);
    while (got < 0 && errno == EINTR);
    if (got == tid && WIFSTOPPED(status))
        return status;
    return fail(ErrorKind::kGone, object, "died while it was asked");
}

// SIGSTOP cannot be blocked: it is let through, and the group-stop that follows is stepped over;
// detaching brings it back (kernel/ptrace.c, __ptrace_unlink).
Result<void> run_to_syscall(pid_t tid, SyscallStop wanted, const std::string& object,
                            const std::function<void()>& before) {
    for (int signal = 0;;) {
        if (before)
            before();
        CKPT_TRY(ptrace_syscall(tid, signal));
        CKPT_ASSIGN(int status, next_stop(tid, object));
        signal = 0;
        if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
            CKPT_ASSIGN(SyscallStop stop, ptrace_syscall_stop(tid));
            if (stop == wanted)
                return {};
        } else if (status >> 16 == 0) {
            signal = WSTOPSIG(status);
        }
    }
}

Result<user_regs_struct> make_call(pid_t tid, const std::string& object,
                                   const std::function<void()>& before) {
    CKPT_TRY(run_to_syscall(tid, SyscallStop::kEntry, object, before));
    user_regs_struct regs{};
    do {
        CKPT_TRY(run_to_syscall(tid, SyscallStop::kExit, object, before));
        CKPT_ASSIGN(regs, ptrace_get_regs(tid));
    } while (restart_kind(regs) != 0);
    return regs;
}

Result<uint64_t> answer_of(const user_regs_struct& regs, long nr, const std::string& object) {
    auto value = static_cast<int64_t>(regs.rax);
    if (value >= 0 || value < -kMaxErrno)
        return regs.rax;
    return tl::unexpected(Error{ErrorKind::kSystem,
                                object,
                                fmt::format("system call {} made in it failed", nr),
                                {},
                                static_cast<int>(-value),
                                {}});
}

void kill_traced(pid_t pid) {
    kill(pid, SIGKILL);
    int status = 0;
    pid_t got = 0;
    do
        got = waitpid(pid, &status, __WALL);
    while ((got < 0 && errno == EINTR) || (got == pid && WIFSTOPPED(status)));
}

}  // namespace checkpointd
