// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The plan's instruction format: what the restore executes, and what `crctl explain` prints.
// Freestanding: included by the blob, so no library header may enter here.
#pragma once

#include <stdint.h>

namespace checkpointd::restorer {

// Most of a restore is system calls in the right order with the right arguments; so an operation *is* a
// system call, and only what the kernel cannot do in one call has a code of its own.
enum class OpCode : uint16_t {
    kInvalid = 0,
    kSyscall,    // slots[result] = nr(args...)
    kStore,      // write the value args[0] to arena address args[1], args[2] bytes wide (4 or 8)
    kLoadDescriptor,  // slots[result] = the int at arena address args[0], moved high as kMoveHigh says
    kReadPages,  // fill memory: preadv(fd args[0], iovec arena args[1], args[2] entries, offset args[3])
                 // until complete; a short file is an error. The iovec array is consumed.
    kForkTask,   // stage only: clone3 with pid args[0] and flags args[2]; the child runs program args[1]
    kLoad,       // slots[result] = the 8 bytes at arena address args[0]
    kHook,       // stage only: hook args[0] runs in this task
    kPlugins,    // stage only: plugins do in this task what args[0] says, with args[1] and args[2]
    kEnterBlob,  // stage only: leave the C++ image for ever; program args[0] on blob stack args[1]
    kThread,     // blob only: clone3 of a thread with tid args[0], program args[1], blob stack args[2]
    kReplaceMemory,  // blob only: unmap everything but the region; the vdso's last mapping moves to
                     // args[0], what lies before it keeps its distance. 0: unmap the vdso as well
    kStop,       // int3. The tracer sees it and goes on when every thread of the stage has arrived:
                 // barrier number args[0]
    kExit,       // exit_group with status args[0]: temporary session leaders and zombies
};

enum class ArgKind : uint8_t {
    kImmediate,  // the value itself
    kArena,      // address of arena byte `value`
    kSlot,       // value of slot `value`
};

enum OpFlags : uint16_t {
    kMoveHigh =
        1 << 0,  // the result is a descriptor: move it above every number that a task will use
    kIgnoreError = 1 << 1,  // best effort; the error is recorded, not fatal
    kExpectExact = 1 << 2,  // the result must equal `expect`; otherwise any non-error will do
    kSteered = 1 << 3,      // of kThread: its number is not ours to choose; the tracer sees to it
};

inline constexpr uint32_t kNoSlot = 0xffffffffu;
inline constexpr uint32_t kNoLabel = 0;

struct Op {
    OpCode code;
    uint16_t flags;
    uint32_t nr;      // system call number for kSyscall
    uint32_t result;  // slot, or kNoSlot
    uint32_t label;   // arena offset of a NUL-terminated text that names the object, or kNoLabel
    int64_t expect;
    uint64_t args[6];
    ArgKind kinds[6];
    uint8_t reserved[2];
};
static_assert(sizeof(Op) == 80);

}  // namespace checkpointd::restorer
