// SPDX-License-Identifier: LGPL-2.1-or-later
//
// How much memory and how many tasks may still be had.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "core/base/error.h"

namespace checkpointd {

struct Room {
    uint64_t memory = ~uint64_t{0};  // bytes
    uint64_t tasks = ~uint64_t{0};
    bool operator==(const Room&) const = default;
};

// What the limits of a cgroup2 directory and of those above it, `top` excluded, leave (memory.max,
// memory.high, pids.max). Memory that only caches files counts as free. Without controllers there
// are no limits.
Room cgroup_room(const std::string& path, const std::string& top);

// What the machine can give without swapping: MemAvailable of /proc/meminfo, bytes.
Result<uint64_t> parse_available_memory(std::string_view meminfo);
Result<uint64_t> available_memory();

// Every promise of memory counts in full, as vm.overcommit_memory=2 says, also that of a
// copy-on-write child.
bool memory_is_promised_in_full();

}  // namespace checkpointd
