// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What the driver writes behind kfd_ioctl_criu_args::priv_data, in this order: the process, one
// word for each device, buffer objects, then queues (each with its MQD and control stack behind
// it), events. Opaque to whoever carries it. The shapes are those of
// drivers/gpu/drm/amd/amdkfd/kfd_priv.h.
#pragma once

#include <array>
#include <cstdint>

namespace checkpointd::kfd_emulation {

constexpr uint32_t kPrivateVersion = 1;
constexpr size_t kMaxGpus = 64;  // MAX_GPU_INSTANCE

struct PrivateProcess {
    uint32_t version = kPrivateVersion;
    uint32_t xnack_mode = 0;
};

struct PrivateDevice {
    uint64_t reserved = 0;
};

struct PrivateBuffer {
    uint64_t user_address = 0;
    uint32_t handle = 0;
    std::array<uint32_t, kMaxGpus> mapped_gpu_ids{};  // user_gpu_id; ends with 0
};

enum class ObjectType : uint32_t { kQueue = 0, kEvent = 1, kSvmRange = 2 };

struct PrivateQueue {
    ObjectType object_type = ObjectType::kQueue;
    uint64_t ring_address = 0;
    uint64_t ring_size = 0;
    uint64_t read_pointer_address = 0;
    uint64_t write_pointer_address = 0;
    uint64_t doorbell_offset = 0;
    uint32_t gpu_id = 0;  // user_gpu_id
    uint32_t type = 0;
    uint32_t queue_id = 0;
    uint32_t priority = 0;
    uint32_t percentage = 0;
    uint32_t ctl_stack_size = 0;
    uint32_t mqd_size = 0;
};

struct PrivateEvent {
    ObjectType object_type = ObjectType::kEvent;
    uint64_t page_handle =
        0;  // of the buffer object that is the event page; with the first event only
    uint32_t event_id = 0;
    uint32_t auto_reset = 0;
    uint32_t type = 0;
    uint32_t signalled = 0;
};

constexpr uint32_t kMqdSize = 512;
constexpr uint32_t kCtlStackSize = 1024;

}  // namespace checkpointd::kfd_emulation
