// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <string>

#include "core/restore/program/plan.h"

namespace checkpointd {

// Name of an x86-64 system call ("openat"), or "syscall_N".
std::string syscall_name(uint32_t nr);

// One operation as one line without newline: `slot7 = openat(slot3, "x", 0x80000)  # label`. It shows
// exactly what runs: call, arguments, what becomes of the result.
std::string print_op(const Plan& plan, const restorer::Op& op);

// A program with its name and numbered operations.
std::string print_program(const Plan& plan, const Program& program);

}  // namespace checkpointd
