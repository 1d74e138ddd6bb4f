// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/amdgpu/sdma.h"

#include <algorithm>

namespace checkpointd::amdgpu {
namespace {

constexpr uint32_t kNop = 0;
constexpr uint32_t kCopyLinear = 1;  // opcode COPY in bits 0-7, subopcode LINEAR (0) in bits 8-15
constexpr uint64_t kMostBytes = 1ull << 21;
constexpr uint32_t kFamilyAi = 141;  // AMDGPU_FAMILY_AI of amdgpu_drm.h
constexpr size_t kFetchWords = 8;

uint32_t low(uint64_t address) {
    return static_cast<uint32_t>(address);
}
uint32_t high(uint64_t address) {
    return static_cast<uint32_t>(address >> 32);
}

}  // namespace

uint64_t sdma_packet_bytes(uint32_t family) {
    return family >= kFamilyAi ? kMostBytes : kMostBytes - 1;
}

std::vector<uint32_t> sdma_copy(uint64_t from, uint64_t to, uint64_t size, uint64_t packet_bytes) {
    std::vector<uint32_t> words;
    while (size > 0) {
        const uint64_t part = std::min(size, packet_bytes);
        words.insert(words.end(),
                     {kCopyLinear, low(part), 0, low(from), high(from), low(to), high(to)});
        from += part;
        to += part;
        size -= part;
    }
    words.resize((words.size() + kFetchWords - 1) / kFetchWords * kFetchWords, kNop);
    return words;
}

}  // namespace checkpointd::amdgpu
