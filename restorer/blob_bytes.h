// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstddef>
#include <span>

namespace checkpointd::restorer {

// The blob's code, to be copied to any page-aligned address; its first byte is its entry.
std::span<const std::byte> blob_bytes();

}  // namespace checkpointd::restorer
