// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What the plugin and the helper tell each other: one request, one answer, as packets of a SOCK_SEQPACKET socket. The
// helper alone loads the driver, which takes seconds and threads of its own, and may hang. What is asked of one
// process is done one after the other, whoever asks.
#pragma once

#include <cstdint>
#include <vector>

#include "plugins/cuda/cuda_abi.h"

namespace checkpointd::cuda {

inline constexpr const char* kHelperSocket = "/run/checkpointd/cuda";
inline constexpr uint32_t kMessageVersion = 2;
inline constexpr unsigned kMaxDevices = 32;

enum class Operation : uint32_t {
    kHello,
    kMemory,
    kThread,
    kUsage,  // device memory that the process has, by device; kNotSupported where nobody tells
    kState,
    kLock,
    kCheckpoint,
    kRestore,
    kUnlock,
    // Storage of ours: device memory of a process is mapped into the helper, copied, and taken from it or given to it.
    kMapCheckpoint,  // locked to checkpointing; the answer has the regions
    kMapRestore,     // checkpointed to restoring; likewise
    kCopy,           // begins to copy all regions: to or from a file (a descriptor comes with the request), which may be
                     // in what the helper has of an earlier copy, or where there is no descriptor to or from that, and memory
    kWait,           // for the end of that, timeout_ms long; kNotReady
    kStop,           // ends it in the middle
    kComplete,       // checkpointing to checkpointed, restoring to locked; only when all is copied
    kHeld,           // value: bits of Held
};

// What the helper has of a process.
enum Held : int32_t {
    kHeldMapped = 1,    // between kMap... and kComplete
    kHeldRestore = 2,   // it is a restore
    kHeldCopied = 4,    // all of it
    kHeldCopying = 16,  // is going on
    kHeldContents = 8,  // of its device memory, from a checkpoint; until it has them back or ends
};

// kCopy went wrong for a reason that is not the driver's: text and errno_code say which.
inline constexpr int32_t kStoreFailed = -1;
// The driver was not asked at all, so it said nothing of the process either: text says why.
inline constexpr int32_t kNotAsked = -2;

// Memory of one device that a process has, and where in the file of its image it is.
struct Region {
    Uuid uuid;
    uint64_t size;
    uint64_t offset;
};

inline uint64_t size_of(const std::vector<Region>& regions) {
    uint64_t sum = 0;
    for (const Region& region : regions)
        sum += region.size;
    return sum;
}

struct Request {
    uint32_t version = kMessageVersion;
    Operation operation = Operation::kHello;
    int32_t pid = 0;
    uint32_t timeout_ms = 0;  // kLock, kWait; kMap...: for others that are at it
    uint32_t pair_count = 0;
    GpuPair pairs[kMaxDevices] = {};
    uint32_t region_count = 0;  // kCopy with a descriptor
    Region regions[kMaxDevices] = {};
};

inline Request request_for(Operation operation, int32_t pid) {
    Request request;
    request.operation = operation;
    request.pid = pid;
    return request;
}

struct Device {
    Uuid uuid;
    uint64_t total_bytes;  // kMap...: of its region; kUsage: what the process has
    uint64_t free_bytes;   // kMemory
};

struct Answer {
    uint32_t version = kMessageVersion;
    int32_t code = kSuccess;   // what the driver answered
    int32_t value = 0;         // kThread: its TID; kState: a ProcessState; kHello, kMemory: the driver's version
    int32_t errno_code = 0;
    uint32_t device_count = 0;  // kHello, kMemory, kUsage, kMap...
    uint32_t offers_storage = 0;  // kHello, kMemory: kMap... can be asked for
    uint64_t bytes = 0;         // kWait: copied so far
    Device devices[kMaxDevices] = {};
    char text[128] = {};  // the driver's name of the code
};

}  // namespace checkpointd::cuda
