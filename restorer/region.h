// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The region: the one piece of memory that lies at the same address in the worker, the agent and every
// task while a restore goes on. Freestanding, like op.h.
#pragma once

#include "restorer/op.h"

namespace checkpointd::restorer {

inline constexpr uint64_t kPageSize = 4096;
inline constexpr uint64_t kBlobStackSize = 4096;  // per thread; the interpreter needs some 500 bytes
inline constexpr uint32_t kMaxVdsoAreas = 4;      // [vvar], [vvar_vclock], [vdso]

struct ProgramRange {
    uint64_t first;  // index into the operations
    uint64_t count;
};

struct Area {
    uint64_t start;
    uint64_t size;
};

// First bytes of the region. All addresses are absolute.
struct RegionHeader {
    Area region;
    Area parking;         // room for the vdso while everything else is unmapped
    uint64_t operations;  // Op[]
    uint64_t programs;    // ProgramRange[]
    uint64_t program_count;
    uint64_t arena;
    uint64_t slots;       // uint64_t[]
    uint64_t stacks;      // blob stack n ends at stacks + (n + 1) * kBlobStackSize
    uint64_t blob_entry;  // where the blob's code starts
    uint64_t hook;        // int (*)(void* context, uint64_t index) in the C++ image, or 0
    uint64_t hook_context;
    uint64_t plugins;     // int (*)(void* context, uint64_t step, uint64_t a, uint64_t b), likewise
    uint64_t plugins_context;
    uint64_t user_end;    // end of the address space that munmap accepts
    Area vdso[kMaxVdsoAreas];  // ascending and adjacent; the last is the vdso itself
    uint32_t vdso_count;
    uint32_t descriptor_floor;
};

// What a thread that stopped by int3 tells the tracer: rax = kStopMark | kind, rdi, rsi, rdx.
inline constexpr uint64_t kStopMark = 0x636b707400000000;  // "ckpt"
enum StopKind : uint32_t {
    kAtBarrier = 1,    // rdi: barrier number; rsi, rdx: at kPluginFilesAgain, how many files wait, and the first of them
    kFailed = 2,       // rdi: program, rsi: operation, rdx: errno
    kWantsNumber = 3,  // rdi: the tid that the thread made next must get
};

}  // namespace checkpointd::restorer
