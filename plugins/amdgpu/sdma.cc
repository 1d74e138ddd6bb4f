// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/amdgpu/sdma.h"

#include <algorithm>

namespace checkpointd::amdgpu {
namespace {

constexpr uint32_t kNop = 0;
constexpr uint32_t kCopyLinear = 1;  // opcode COPY in bits 0-7, subopcode LINEAR (0) in bits 8-15
constexpr uint64_t kMostCount = (1u << 21) - 1;
// AMDGPU_FAMILY_AI (Vega 10) of amdgpu_drm.h: from there on a count of 0 is one byte.
// sdma_v3_0_emit_copy_buffer() and sdma_v4_0_emit_copy_buffer() of the driver.
constexpr uint32_t kFamilyAi = 141;
constexpr size_t kFetchWords = 8;

uint32_t low(uint64_t address) {
    return static_cast<uint32_t>(address);
}
uint32_t high(uint64_t address) {
    return static_cast<uint32_t>(address >> 32);
}

}  // namespace

std::vector<uint32_t> sdma_copy(uint64_t from, uint64_t to, uint64_t size, uint32_t family) {
    const uint64_t none = family >= kFamilyAi ? 1 : 0;  // bytes of a count of 0
    std::vector<uint32_t> words;
    while (size > 0) {
        const uint64_t part = std::min(size, kMostCount + none);
        words.insert(words.end(),
                     {kCopyLinear, low(part - none), 0, low(from), high(from), low(to), high(to)});
        from += part;
        to += part;
        size -= part;
    }
    words.resize((words.size() + kFetchWords - 1) / kFetchWords * kFetchWords, kNop);
    return words;
}

}  // namespace checkpointd::amdgpu
