// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "plugins/cuda/cuda_abi.h"
#include "plugins/cuda/uuid.h"
#include "plugins/host/setting_reader.h"

namespace checkpointd::cuda {

enum class OnTimeout {
    kResume,  // wait for the driver, then bring the process back: nothing is lost but time
    kKill,    // end the process
    kLeave,   // as it is
};

enum class StorageWanted { kAuto, kHost, kCustom };

// What the policy says under plugins.cuda.
struct Settings {
    bool by_command = false;  // backend: command, else driver-api
    std::string command = "cuda-checkpoint";
    std::chrono::milliseconds lock_timeout{10000};
    std::chrono::milliseconds checkpoint_timeout{600000};  // of one process; also of its restore
    OnTimeout on_timeout = OnTimeout::kResume;
    bool checks_memory = true;
    bool checks_ipc = true;
    StorageWanted storage = StorageWanted::kAuto;
    std::vector<GpuPair> device_map;

    // `get` answers a setting's text, or null. All that is wrong comes back as one error.
    static Result<Settings> read(const SettingReader::Get& get);
};

extern const char* const kSettingNames[];

}  // namespace checkpointd::cuda
