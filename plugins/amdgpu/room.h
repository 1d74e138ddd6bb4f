// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Whether the buffers of an image have room here.
#pragma once

#include <chrono>
#include <map>
#include <vector>

#include "core/base/error.h"
#include "plugins/amdgpu/kfd.h"

namespace checkpointd::amdgpu {

// In bytes.
struct NeededRoom {
    std::map<uint32_t, uint64_t> vram;  // by the gpu_id here
    uint64_t host = 0;                  // buffers in the driver's own memory (GTT)
};

// What is lacking, for each GPU and for the host; nothing where a kernel does not tell (KFD before
// 1.9). KFD takes back what a process had a moment after its end: as long as `patience` says this
// waits for it.
std::vector<Error> missing_room(const Kfd& kfd, const NeededRoom& needed,
                                std::chrono::milliseconds patience);

}  // namespace checkpointd::amdgpu
