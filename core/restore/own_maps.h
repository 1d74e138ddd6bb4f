// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/error.h"

namespace checkpointd {

// A mapping of our own process.
struct OwnMapping {
    uint64_t start = 0;
    uint64_t end = 0;
    std::string name;
};

// The mappings of this process, ascending.
Result<std::vector<OwnMapping>> own_mappings();

}  // namespace checkpointd
