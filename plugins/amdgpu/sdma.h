// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Commands of the copy engine (SDMA) of AMD GPUs.
#pragma once

#include <cstdint>
#include <vector>

namespace checkpointd::amdgpu {

// What one packet copies at most: 2 MiB, and a byte less on GPUs before the family AI (Vega 10).
uint64_t sdma_packet_bytes(uint32_t family);

// Linear copies of `size` bytes between two GPU addresses, padded with NOPs to whole fetches of 8
// words.
std::vector<uint32_t> sdma_copy(uint64_t from, uint64_t to, uint64_t size, uint64_t packet_bytes);

}  // namespace checkpointd::amdgpu
