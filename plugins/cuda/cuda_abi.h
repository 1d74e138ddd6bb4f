// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What of the CUDA driver API is needed to checkpoint processes, declared by ourselves so that nothing of CUDA is
// needed to build. Facts: NVIDIA's CUDA Driver API, "CUDA checkpointing"; structures are 64 bytes and zero where not used.
#pragma once

#include <cstdint>

namespace checkpointd::cuda {

// CUresult, as far as it is told apart.
enum Code : int32_t {
    kSuccess = 0,
    kInvalidValue = 1,  // also: the process uses no CUDA
    kOutOfMemory = 2,
    kNotInitialized = 3,
    kNoDevice = 100,
    kOperatingSystem = 304,
    kIllegalState = 401,
    kNotReady = 600,
    kNotSupported = 801,
    kTimeout = 909,
};

// CUprocessState. The last two since 13.4.
enum class ProcessState : int32_t { kRunning, kLocked, kCheckpointed, kFailed, kCheckpointing, kRestoring };

// cuDriverGetVersion(): the calls are there; pairs of devices; storage of the caller's.
inline constexpr int kBaseVersion = 12080;
inline constexpr int kPairsVersion = 13000;
inline constexpr int kStorageVersion = 13040;

struct Uuid {
    uint8_t bytes[16];
    bool operator==(const Uuid&) const = default;
};

struct GpuPair {
    Uuid from;
    Uuid to;
};

struct LockArgs {
    uint32_t timeout_ms;  // 0: none. The state stays kRunning when it passes
    uint32_t reserved0;
    uint64_t reserved1[7];
};

// Storage of the caller's: what of one device a process has, mapped into the caller, and a stream of its primary context.
struct StorageRegion {
    uint64_t pointer;
    size_t size;
    void* stream;
};

// Allocated by the driver.
struct StorageInfo {
    void* operation;  // for cuCheckpointOperationComplete()
    StorageRegion* regions;
    uint32_t region_count;
};

struct CheckpointArgs {
    StorageInfo** storage_out;  // since kStorageVersion; null: the driver copies into memory of the process
    uint64_t reserved[7];
};

struct RestoreArgs {
    const GpuPair* pairs;  // since kPairsVersion; all devices of the process or none
    uint32_t pair_count;
    uint32_t reserved0;
    StorageInfo** storage_out;
    uint64_t reserved[5];
};

struct UnlockArgs {
    uint64_t reserved[8];
};

static_assert(sizeof(LockArgs) == 64 && sizeof(CheckpointArgs) == 64);
static_assert(sizeof(RestoreArgs) == 64 && sizeof(UnlockArgs) == 64);

}  // namespace checkpointd::cuda
