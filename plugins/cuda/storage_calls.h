// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstddef>
#include <cstdint>

#include "plugins/cuda/cuda_abi.h"

namespace checkpointd::cuda {

// What of the driver it takes to copy device memory of other processes, since kStorageVersion. All is there, or all is null.
struct StorageCalls {
    int (*checkpoint)(int pid, CheckpointArgs*) = nullptr;
    int (*restore)(int pid, RestoreArgs*) = nullptr;
    int (*complete)(void* operation) = nullptr;
    int (*state)(int pid, ProcessState*) = nullptr;
    int (*device_count)(int*) = nullptr;
    int (*device)(int*, int index) = nullptr;
    int (*uuid)(Uuid*, int device) = nullptr;
    int (*context_retain)(void**, int device) = nullptr;
    int (*context_release)(int device) = nullptr;
    int (*context_set)(void*) = nullptr;
    int (*context_device)(int*) = nullptr;
    int (*stream_context)(void* stream, void** context, void** green) = nullptr;
    int (*stream_create)(void**, unsigned flags) = nullptr;
    int (*stream_destroy)(void*) = nullptr;
    int (*stream_wait)(void*) = nullptr;
    int (*event_create)(void**, unsigned flags) = nullptr;
    int (*event_destroy)(void*) = nullptr;
    int (*event_record)(void* event, void* stream) = nullptr;
    int (*event_wait)(void*) = nullptr;
    int (*host_alloc)(void**, size_t, unsigned flags) = nullptr;
    int (*host_free)(void*) = nullptr;
    int (*copy_out)(void* to, uint64_t from, size_t, void* stream) = nullptr;
    int (*copy_in)(uint64_t to, const void* from, size_t, void* stream) = nullptr;

    bool all() const { return copy_in != nullptr; }
};

}  // namespace checkpointd::cuda
