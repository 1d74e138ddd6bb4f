// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/arch/x86_64/restart.h"

#include <cerrno>
#include <sys/syscall.h>

namespace checkpointd {
namespace {

constexpr uint64_t kNoSystemCall = ~uint64_t{0};
constexpr unsigned kSyscallInstructionSize = 2;  // 0f 05

// A time-out in milliseconds that is none, or short enough to be waited for once more.
bool may_wait_again(uint64_t milliseconds) {
    auto timeout = static_cast<int32_t>(milliseconds);
    return timeout <= 1000;
}

// Linux answers EINTR from these without looking whether there is a handler: fs/eventpoll.c ep_poll(),
// kernel/signal.c do_sigtimedwait(), ipc/sem.c, fs/aio.c.
bool answers_eintr_to_any_wake_up(const user_regs_struct& regs) {
    switch (regs.orig_rax) {
        case SYS_epoll_wait:
        case SYS_epoll_pwait: return may_wait_again(regs.r10);
        case SYS_epoll_pwait2: return regs.r10 == 0;
        case SYS_rt_sigtimedwait: return regs.rdx == 0;
        case SYS_semop: return true;
        case SYS_semtimedop: return regs.r10 == 0;
        case SYS_io_getevents: return regs.r8 == 0;
        default: return false;
    }
}

}  // namespace

bool in_system_call(const user_regs_struct& regs) {
    return static_cast<int64_t>(regs.orig_rax) >= 0;
}

int restart_kind(const user_regs_struct& regs) {
    if (!in_system_call(regs))
        return 0;
    int64_t error = -static_cast<int64_t>(regs.rax);
    bool is_restart = error == kRestartSys || error == kRestartNoIntr || error == kRestartNoHand ||
                      error == kRestartBlock;
    return is_restart ? static_cast<int>(error) : 0;
}

bool repair_spurious_eintr(user_regs_struct& regs) {
    if (!in_system_call(regs) || static_cast<int64_t>(regs.rax) != -EINTR ||
        !answers_eintr_to_any_wake_up(regs))
        return false;
    regs.rax = static_cast<uint64_t>(-int64_t{kRestartNoHand});
    return true;
}

user_regs_struct resume_in_user_mode(const user_regs_struct& regs) {
    user_regs_struct out = regs;
    int kind = restart_kind(regs);
    if (kind != 0) {
        out.rip -= kSyscallInstructionSize;
        out.rax = kind == kRestartBlock ? uint64_t{SYS_restart_syscall} : regs.orig_rax;
    }
    out.orig_rax = kNoSystemCall;
    return out;
}

user_regs_struct resume_after_handler(const user_regs_struct& regs) {
    int kind = restart_kind(regs);
    if (kind != kRestartNoHand && kind != kRestartBlock)
        return resume_in_user_mode(regs);
    user_regs_struct out = regs;
    out.rax = static_cast<uint64_t>(-int64_t{EINTR});
    out.orig_rax = kNoSystemCall;
    return out;
}

}  // namespace checkpointd
