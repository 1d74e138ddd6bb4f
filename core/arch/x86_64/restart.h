// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What the registers of a stopped thread say about an interrupted system call, and how it goes on.
#pragma once

#include <cstdint>
#include <sys/user.h>

namespace checkpointd {

// The kernel's private error numbers (include/linux/errno.h): a call was interrupted and is to be made again.
inline constexpr int kRestartSys = 512;       // after a handler only with SA_RESTART
inline constexpr int kRestartNoIntr = 513;    // always
inline constexpr int kRestartNoHand = 514;    // unless a handler ran
inline constexpr int kRestartBlock = 516;     // through restart_syscall(2), unless a handler ran

// The stop lies on the way out of a system call (orig_rax names it).
bool in_system_call(const user_regs_struct& regs);
// Which of the four numbers above the call answered; 0 where it is none.
int restart_kind(const user_regs_struct& regs);

// Some waits answer EINTR to any wake-up, even without a signal (signal(7), "Interruption of system calls
// and library functions by stop signals"). Where making the call again is what the program would want,
// turns EINTR into "again, unless a handler runs". Waits with a time-out above one second keep EINTR: how
// much of it is left is not known. True where it changed the registers.
bool repair_spurious_eintr(user_regs_struct& regs);

// The registers with which a thread goes on in user mode as if the kernel had restarted the call itself:
// arch/x86/kernel/signal.c, arch_do_signal_or_restart(). No system call is named in them any more.
user_regs_struct resume_in_user_mode(const user_regs_struct& regs);
// The same where a signal handler ran meanwhile: waits that end with one answer EINTR.
user_regs_struct resume_after_handler(const user_regs_struct& regs);

}  // namespace checkpointd
