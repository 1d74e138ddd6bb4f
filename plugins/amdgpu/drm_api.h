// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The part of libdrm_amdgpu that copies need, declared after its documentation: the library is
// loaded where there is a GPU, and needed nowhere else. Functions answer 0 or -errno. The sizes
// below are those of libdrm 2.4.
#pragma once

#include <cstdint>

#include "core/base/error.h"

namespace checkpointd::amdgpu::drm {

using Device = struct OpaqueDevice*;
using Buffer = struct OpaqueBuffer*;
using Range = struct OpaqueRange*;
using List = struct OpaqueList*;
using Context = struct OpaqueContext*;

struct GpuInfo {
    uint32_t asic_id, chip_revision, chip_external_revision, family_id;
    uint64_t rest[512];  // of no interest; the library fills about 800 bytes
};

struct AllocRequest {
    uint64_t size;
    uint64_t alignment;
    uint32_t heap;
    uint64_t flags;
};

struct ImportResult {
    Buffer buffer;
    uint64_t size;
};

struct Commands {
    uint64_t flags;
    uint64_t gpu_address;
    uint32_t words;
};

struct Fence {
    Context context;
    uint32_t ip_type, ip_instance, ring;
    uint64_t number;
};

struct Request {
    uint64_t flags;
    unsigned ip_type, ip_instance;
    uint32_t ring;
    List buffers;
    uint32_t dependency_count;
    Fence* dependencies;
    uint32_t commands_count;
    Commands* commands;
    uint64_t number;  // out
    Buffer user_fence;
    uint64_t user_fence_offset;
};

static_assert(sizeof(Request) == 88 && sizeof(Fence) == 32 && sizeof(Commands) == 24 &&
              sizeof(AllocRequest) == 32 && sizeof(ImportResult) == 16);

inline constexpr uint32_t kImportDmaBuf = 2;  // amdgpu_bo_handle_type_dma_buf_fd
inline constexpr uint32_t kGeneralRange = 0;  // amdgpu_gpu_va_range_general
inline constexpr uint32_t kMap = 1;           // AMDGPU_VA_OP_MAP
inline constexpr uint32_t kUnmap = 2;         // AMDGPU_VA_OP_UNMAP
inline constexpr uint32_t kHeapGtt = 2;       // AMDGPU_GEM_DOMAIN_GTT
inline constexpr uint32_t kCopyEngine = 2;    // AMDGPU_HW_IP_DMA

struct Api {
    int (*device_initialize)(int fd, uint32_t* major, uint32_t* minor, Device*);
    int (*device_deinitialize)(Device);
    int (*query_gpu_info)(Device, GpuInfo*);
    int (*create_bo_from_user_mem)(Device, void* memory, uint64_t size, Buffer*);
    int (*bo_import)(Device, uint32_t kind, uint32_t handle, ImportResult*);
    int (*bo_alloc)(Device, AllocRequest*, Buffer*);
    int (*bo_free)(Buffer);
    int (*bo_cpu_map)(Buffer, void** memory);
    int (*bo_cpu_unmap)(Buffer);
    int (*va_range_alloc)(Device, uint32_t kind, uint64_t size, uint64_t alignment,
                          uint64_t required, uint64_t* address, Range*, uint64_t flags);
    int (*va_range_free)(Range);
    int (*bo_va_op)(Buffer, uint64_t offset, uint64_t size, uint64_t address, uint64_t flags,
                    uint32_t operation);
    int (*bo_list_create)(Device, uint32_t count, Buffer*, uint8_t* priorities, List*);
    int (*bo_list_destroy)(List);
    int (*cs_ctx_create)(Device, Context*);
    int (*cs_ctx_free)(Context);
    int (*cs_submit)(Context, uint64_t flags, Request*, uint32_t count);
    int (*cs_query_fence_status)(Fence*, uint64_t timeout_nanoseconds, uint64_t flags,
                                 uint32_t* has_ended);
};

// libdrm_amdgpu.so.1, which stays loaded. kUnsupported where it or a function is missing.
Result<Api> load_api(const char* library = "libdrm_amdgpu.so.1");

}  // namespace checkpointd::amdgpu::drm
