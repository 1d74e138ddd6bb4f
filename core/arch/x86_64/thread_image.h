// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Registers of a stopped x86_64 thread as an image, the dump side.
#pragma once

#include <cstddef>
#include <span>
#include <sys/types.h>
#include <sys/user.h>

#include "core/base/error.h"
#include "images/proto/core_x86.pb.h"

namespace checkpointd {

// Registers with which the thread, made anew, goes on: a system call that the kernel was about to
// restart is made to start again by stepping back over `syscall`.
user_regs_struct resumable_registers(user_regs_struct regs);

// gpregs and fpregs. `xstate` is the area of NT_X86_XSTATE, 576 bytes at least; components lie where
// CPUID leaf 0xD says.
Result<void> dump_registers(const user_regs_struct& regs, std::span<const std::byte> xstate,
                            images::thread_info_x86& out);
// The three thread-local segments of set_thread_area(2), asked through ptrace.
Result<void> dump_segments(pid_t tid, images::thread_info_x86& out);

}  // namespace checkpointd
