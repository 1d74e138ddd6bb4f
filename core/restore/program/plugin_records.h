// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What plugins are told in a task, and what they answer: in the arena, between the plan and restorer::OpCode::kPlugins.
#pragma once

#include <cstdint>

namespace checkpointd {

// args[0] of the operation; then its other arguments.
enum class PluginStep : uint64_t {
    kUseChannel,      // which of Plugins::channels(), its descriptor in the task
    kInTask,          // none
    kRestoreFiles,    // PluginFileRecord[], how many
    kUpdateMappings,  // PluginMappingRecord[], how many
};

struct PluginFileRecord {
    uint64_t plugin = 0;  // address of its name; 0: any
    uint32_t id = 0;
    int32_t fd = 0;       // out: or -errno
};

struct PluginMappingRecord {
    uint64_t plugin = 0;
    uint64_t path = 0;    // address of the text
    uint64_t start = 0;
    uint64_t end = 0;
    uint64_t offset = 0;  // in, and out
    uint32_t prot = 0;
    uint32_t flags = 0;
    int32_t fd = 0;       // out: or -errno
    uint32_t reserved = 0;
};

}  // namespace checkpointd
