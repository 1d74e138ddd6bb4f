// SPDX-License-Identifier: LGPL-2.1-or-later
//
// ptrace(2) with types. Every function must be called by the thread that seized the task; all answer kGone
// when the task is dead or not in a ptrace-stop (the kernel says ESRCH for both).
#pragma once

#include <csignal>
#include <cstddef>
#include <cstdint>
#include <linux/filter.h>
#include <optional>
#include <sys/types.h>
#include <sys/user.h>
#include <vector>

#include "core/base/error.h"

namespace checkpointd {

// struct ptrace_rseq_configuration of linux/ptrace.h.
struct RseqConfiguration {
    uint64_t abi_pointer = 0;  // 0: none is registered
    uint32_t abi_size = 0;
    uint32_t signature = 0;
    uint32_t flags = 0;
};

// What a system call stop is: PTRACE_GET_SYSCALL_INFO's `op`.
enum class SyscallStop { kNone, kEntry, kExit, kSeccomp };

Result<void> ptrace_seize(pid_t tid, unsigned options);
Result<void> ptrace_interrupt(pid_t tid);
Result<void> ptrace_detach(pid_t tid);
Result<void> ptrace_set_options(pid_t tid, unsigned options);
// PTRACE_CONT and PTRACE_SYSCALL. `signal` is delivered only out of a signal-delivery-stop.
Result<void> ptrace_cont(pid_t tid, int signal = 0);
Result<void> ptrace_syscall(pid_t tid, int signal = 0);
Result<SyscallStop> ptrace_syscall_stop(pid_t tid);

// NT_PRSTATUS. Refuses 32-bit tasks (the kernel returns a shorter set for them).
Result<user_regs_struct> ptrace_get_regs(pid_t tid);
Result<void> ptrace_set_regs(pid_t tid, const user_regs_struct& regs);
// NT_X86_XSTATE: the xsave area as the kernel lays it out, at most 16 KiB.
Result<std::vector<std::byte>> ptrace_get_xstate(pid_t tid);
Result<void> ptrace_set_xstate(pid_t tid, const std::vector<std::byte>& xstate);

// The mask that will be in force when the task is back in its program: of a task that waits under a temporary
// mask (sigsuspend, ppoll) the one outside. Setting it drops a temporary mask.
Result<uint64_t> ptrace_get_sigmask(pid_t tid);
Result<void> ptrace_set_sigmask(pid_t tid, uint64_t mask);

// Queued signals in the order of the queue, left in it: of the thread, or of its process where `shared`.
Result<std::vector<siginfo_t>> ptrace_pending_signals(pid_t tid, bool shared);

// nullopt where the kernel (before 5.13) does not know the request.
Result<std::optional<RseqConfiguration>> ptrace_get_rseq(pid_t tid);

// Filter number `index`, 0 is the youngest; nullopt past the last.
Result<std::optional<std::vector<sock_filter>>> ptrace_get_seccomp_filter(pid_t tid, unsigned index);
// Its flags (SECCOMP_FILTER_FLAG_LOG is all the kernel tells).
Result<uint64_t> ptrace_get_seccomp_flags(pid_t tid, unsigned index);

}  // namespace checkpointd
