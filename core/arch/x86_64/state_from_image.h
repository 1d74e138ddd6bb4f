// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "images/proto/core_x86.pb.h"

namespace checkpointd {

// The bytes of user_regs_struct for PTRACE_SETREGSET, such that the thread goes on in user mode with no
// system call to restart by the kernel. `object` is for errors.
Result<std::vector<std::byte>> registers_from_image(const images::user_x86_regs_entry& image,
                                                    const std::string& object);

// An XSAVE area in the standard format and of the size of this CPU, for NT_X86_XSTATE. kUnsupported if
// the state has components that this CPU or kernel lacks.
Result<std::vector<std::byte>> xstate_from_image(const images::user_x86_fpregs_entry& image,
                                                 const std::string& object);

// `raw`, an area of NT_X86_XSTATE as another thread had it, where this CPU lays it out alike; empty
// where it does not.
std::vector<std::byte> xstate_from_raw(const std::string& raw);

// Components of the area that a process must ask for before it may use them (AMX), as a mask.
uint64_t components_by_permission(const std::vector<std::byte>& xstate);

}  // namespace checkpointd
