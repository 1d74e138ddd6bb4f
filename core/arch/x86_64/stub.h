// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The code that a remote system call runs in, and that leads its thread home should we die.
#pragma once

#include <cstddef>
#include <cstdint>
#include <sys/user.h>
#include <vector>

namespace checkpointd {

// What a thread returns to when it is let go inside the stub.
struct StubReturn {
    user_regs_struct plain;          // no signal handler ran meanwhile
    user_regs_struct after_handler;  // differs in rax and rip at most
    uint64_t signal_mask = 0;
    // Whether ppoll(2) may be used to learn that a handler ran; else `plain` is taken always.
    bool may_poll = true;
};

// Every stub has this size, a multiple of 16, and ends with the magic number.
inline constexpr size_t kStubSize = 304;
inline constexpr uint64_t kStubMagic = 0x42555453'54504b43;  // "CKPTSTUB"

// Position-independent code that starts with `syscall`. Entered with any call in the registers it makes that
// call, sets the signal mask, loads the registers that a call may clobber or take from the slots behind the
// code, and jumps to `rip`. It touches neither stack nor flags, and writes no memory.
std::vector<std::byte> assemble_stub(const StubReturn& back);

// Whether `bytes` (kStubSize of them) are a stub that an injector left behind.
bool looks_like_stub(const std::byte* bytes);

}  // namespace checkpointd
