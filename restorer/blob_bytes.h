// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstddef>
#include <span>

extern "C" const std::byte checkpointd_blob_begin[];
extern "C" const std::byte checkpointd_blob_end[];

namespace checkpointd::restorer {

// The blob's code, to be copied to any page-aligned address; its first byte is its entry.
inline std::span<const std::byte> blob_bytes() {
    return {checkpointd_blob_begin, checkpointd_blob_end};
}

}  // namespace checkpointd::restorer
