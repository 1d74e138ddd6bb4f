// SPDX-License-Identifier: LGPL-2.1-or-later
//
// One system call of a traced task, from stop to stop.
#pragma once

#include <sys/types.h>
#include <sys/user.h>
#include <array>
#include <cstdint>
#include <functional>
#include <string>

#include "core/base/error.h"
#include "core/kernel/ptrace.h"

namespace checkpointd {

// Six arguments of a system call, in their order.
using RawArgs = std::array<uint64_t, 6>;

// The registers of a task that is about to make call `nr` at the `syscall` instruction at `rip`,
// the others as in `regs`.
user_regs_struct with_call(user_regs_struct regs, uint64_t rip, long nr, const RawArgs& args);

// The status of the task's next stop (waitpid(2)); kGone when it died. `object` names it in errors.
Result<int> next_stop(pid_t tid, const std::string& object);

// Continues to the next entry or exit of a system call; other stops are stepped over. `before` is
// called each time before it goes on.
Result<void> run_to_syscall(pid_t tid, SyscallStop wanted, const std::string& object,
                            const std::function<void()>& before = {});

// Makes the call that stands in its registers, again where it was interrupted, and returns the
// registers at its end.
Result<user_regs_struct> make_call(pid_t tid, const std::string& object,
                                   const std::function<void()>& before = {});

// What the call answered: its value, or kSystem with the errno.
Result<uint64_t> answer_of(const user_regs_struct& regs, long nr, const std::string& object);

// SIGKILL to a task that the calling process traces, and its end taken. Nothing where it is gone.
void kill_traced(pid_t pid);

}  // namespace checkpointd
