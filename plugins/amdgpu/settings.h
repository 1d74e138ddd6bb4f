// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <chrono>

#include "plugins/amdgpu/topology_map.h"
#include "plugins/host/setting_reader.h"

namespace checkpointd::amdgpu {

// What the policy says under plugins.amdgpu.
struct Settings {
    bool is_parallel = true;  // buffers are filled while the processes rebuild their memory,
                              // reading beside copying
    uint64_t staging_bytes = 64u << 20;
    std::chrono::milliseconds copy_timeout{30000};  // of one piece
    bool checks_memory = true;                      // before a restore
    MapRules rules;

    static Result<Settings> read(const SettingReader::Get& get);
};

extern const char* const kSettingNames[];

}  // namespace checkpointd::amdgpu
