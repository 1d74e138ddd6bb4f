// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What the plugin and the helper tell each other: one request, one answer, as packets of a SOCK_SEQPACKET socket. The
// helper alone loads the driver, which takes seconds and threads of its own, and may hang.
#pragma once

#include <cstdint>

#include "plugins/cuda/cuda_abi.h"

namespace checkpointd::cuda {

inline constexpr const char* kHelperSocket = "/run/checkpointd/cuda";
inline constexpr uint32_t kMessageVersion = 1;
inline constexpr unsigned kMaxDevices = 32;

enum class Operation : uint32_t { kHello, kMemory, kThread, kState, kLock, kCheckpoint, kRestore, kUnlock };

struct Request {
    uint32_t version = kMessageVersion;
    Operation operation = Operation::kHello;
    int32_t pid = 0;
    uint32_t timeout_ms = 0;
    uint32_t pair_count = 0;
    GpuPair pairs[kMaxDevices] = {};
};

struct Device {
    Uuid uuid;
    uint64_t total_bytes;
    uint64_t free_bytes;  // kMemory
};

struct Answer {
    uint32_t version = kMessageVersion;
    int32_t code = kSuccess;   // what the driver answered
    int32_t value = 0;         // kThread: its TID; kState: a ProcessState; kHello, kMemory: the driver's version
    uint32_t device_count = 0;  // kHello, kMemory
    Device devices[kMaxDevices] = {};
    char text[128] = {};  // the driver's name of the code
};

}  // namespace checkpointd::cuda
