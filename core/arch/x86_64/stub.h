// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The code that a remote system call runs in, and that leads its thread home should we die.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
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
inline constexpr size_t kStubSize = 368;
inline constexpr uint64_t kStubMagic = 0x42555453'54504b43;  // "CKPTSTUB"

// Where a stub is entered with a call that makes a child which shares its memory (clone with
// CLONE_VM, no exit signal). The child, if it is let go, ends at once; the parent waits for its end
// (waitid with __WALL), and then goes on as after any other call. So neither runs what is not its
// own, and no dead child is left, whoever dies.
inline constexpr uint64_t kCloneEntry = 4;
inline constexpr size_t kSyscallSize = 2;

// Position-independent code that starts with `syscall`. Entered with any call in the registers it makes that
// call, sets the signal mask, loads the registers that a call may clobber or take from the slots behind the
// code, and jumps to `rip`. It touches neither stack nor flags, and writes no memory.
std::vector<std::byte> assemble_stub(const StubReturn& back);

// Whether `bytes` (kStubSize of them) are a stub that an injector left behind.
bool looks_like_stub(const std::byte* bytes);

// Where the first byte of a stub would lie that a thread at `rip` is in: the places of stubs are counted from
// the end of a page. nullopt if `rip` is in no such place.
std::optional<uint64_t> stub_place_of(uint64_t rip);

// A thread that was let go inside of a stub and stopped again before it got home: what it is on its way to.
struct WayHome {
    user_regs_struct regs;  // an interrupted call is one again where that can be told
    uint64_t signal_mask;
};
// `bytes` is the stub (looks_like_stub) at `place`, `regs` the thread's, with rip in its code; nullopt if rip is
// not in the code.
std::optional<WayHome> way_home(const std::byte* bytes, uint64_t place, const user_regs_struct& regs);

// It has made a child at kCloneEntry, or is that child, and must go on by itself: there is no way
// home yet.
bool is_with_child(uint64_t place, const user_regs_struct& regs);

}  // namespace checkpointd
