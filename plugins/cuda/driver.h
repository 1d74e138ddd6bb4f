// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <string>

#include "core/base/error.h"
#include "plugins/cuda/message.h"
#include "plugins/cuda/storage_calls.h"

namespace checkpointd::cuda {

// libcuda.so.1, loaded and initialised. Calls may take forever; several threads may call.
class Driver {
  public:
    // kNotFound where there is no driver or no device, kUnsupported where it is too old.
    static Result<Driver> load();

    // All but what takes storage of ours.
    Answer serve(const Request& request) const;
    // Adds the driver's name of a failure.
    void name_code(Answer& answer) const;
    // For that; nothing is there if this driver cannot.
    const StorageCalls& storage() const { return storage_; }

  private:
    Driver() = default;
    Answer devices(bool with_memory) const;
    void ask_free(int device, Device& out) const;
    int call(const Request& request, Answer& answer) const;
    void resolve_storage(void* library);

    int version_ = 0;
    StorageCalls storage_;
    int (*get_count_)(int*) = nullptr;
    int (*get_device_)(int*, int) = nullptr;
    int (*get_uuid_)(Uuid*, int) = nullptr;
    int (*total_memory_)(size_t*, int) = nullptr;
    int (*get_name_)(int, const char**) = nullptr;
    int (*thread_)(int, int*) = nullptr;
    int (*state_)(int, ProcessState*) = nullptr;
    int (*lock_)(int, LockArgs*) = nullptr;
    int (*checkpoint_)(int, CheckpointArgs*) = nullptr;
    int (*restore_)(int, RestoreArgs*) = nullptr;
    int (*unlock_)(int, UnlockArgs*) = nullptr;
    int (*context_retain_)(void**, int) = nullptr;
    int (*context_release_)(int) = nullptr;
    int (*context_set_)(void*) = nullptr;
    int (*memory_info_)(size_t*, size_t*) = nullptr;
};

}  // namespace checkpointd::cuda
