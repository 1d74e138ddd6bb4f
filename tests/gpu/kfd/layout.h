// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Numbers of the driver that programs see: handles and places to map (kfd_priv.h, kfd_doorbell.c).
#pragma once

#include <linux/kfd_ioctl.h>
#include <cstdint>

namespace checkpointd::kfd_emulation {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kDoorbellSlice = 2 * kPage;  // of one process on one device
constexpr unsigned kMmapGpuShift = 46;
constexpr uint64_t kMmapTypeDoorbell = 3;

constexpr uint64_t make_handle(uint32_t gpu_id, uint32_t handle) {
    return static_cast<uint64_t>(gpu_id) << 32 | handle;
}

constexpr uint32_t gpu_of_handle(uint64_t handle) {
    return static_cast<uint32_t>(handle >> 32);
}

// Buffer objects that can be exported as dma-bufs.
constexpr bool has_storage(uint32_t flags) {
    return (flags & (KFD_IOC_ALLOC_MEM_FLAGS_VRAM | KFD_IOC_ALLOC_MEM_FLAGS_GTT)) != 0;
}

}  // namespace checkpointd::kfd_emulation
