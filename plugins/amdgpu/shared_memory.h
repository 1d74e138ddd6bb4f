// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <string>

#include "core/base/error.h"

namespace checkpointd::amdgpu {

// What all programs of ROCm's thunk (libhsakmt) on a machine share, below /dev/shm: a file that
// begins with a magic number, and a semaphore. Programs count on both being there.
struct SharedMemory {
    uint64_t size = 0;  // 0: there is none
    uint32_t magic = 0;
};

inline constexpr const char* kSharedMemoryFolder = "/dev/shm";

Result<SharedMemory> read_shared_memory(const std::string& folder = kSharedMemoryFolder);
// Makes what is missing, for all users as the thunk does. What others have counted in a file that
// is gone is lost.
Result<void> make_shared_memory(const SharedMemory& wanted,
                                const std::string& folder = kSharedMemoryFolder);

}  // namespace checkpointd::amdgpu
