// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Commands of the copy engine (SDMA) of AMD GPUs.
#pragma once

#include <cstdint>
#include <vector>

namespace checkpointd::amdgpu {

// Linear copies of `size` bytes between two GPU addresses by a GPU of this family
// (AMDGPU_FAMILY_...), padded with NOPs to whole fetches of 8 words.
std::vector<uint32_t> sdma_copy(uint64_t from, uint64_t to, uint64_t size, uint32_t family);

}  // namespace checkpointd::amdgpu
