// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/amdgpu/settings.h"

#include <charconv>
#include <sstream>

namespace checkpointd::amdgpu {

const char* const kSettingNames[] = {
    "parallel",   "staging-memory",  "copy-timeout",        "check-memory",
    "device-map", "firmware-check",  "sdma-firmware-check", "caches-check",
    "gws-check",  "vram-size-check", "capability-check",    "numa-check",
    nullptr};

namespace {

constexpr uint64_t kMostStaging = 64ull << 30;

Result<uint64_t> parse_size(const std::string& text) {
    uint64_t number = 0;
    const char* end = text.data() + text.size();
    const auto digits = std::from_chars(text.data(), end, number);
    unsigned shift = 0;
    if (digits.ptr + 1 == end)
        shift = *digits.ptr == 'K' ? 10 : *digits.ptr == 'M' ? 20 : *digits.ptr == 'G' ? 30 : 99;
    else if (digits.ptr != end)
        shift = 99;
    if (digits.ec != std::errc() || shift == 99 || number == 0 || number > kMostStaging >> shift)
        return fail(ErrorKind::kBadInput, text, "write it as in 64M; K, M, G; up to 64G");
    return number << shift;
}

bool parse_gpu(std::string text, uint32_t& out) {
    const int base = text.starts_with("0x") ? 16 : 10;
    if (base == 16)
        text.erase(0, 2);
    const auto end = std::from_chars(text.data(), text.data() + text.size(), out, base);
    return end.ec == std::errc() && end.ptr == text.data() + text.size() && out != 0;
}

Result<std::map<uint32_t, uint32_t>> parse_map(const std::string& text) {
    std::map<uint32_t, uint32_t> map;
    std::stringstream all(text);
    for (std::string one; std::getline(all, one, ',');) {
        const size_t middle = one.find('=');
        uint32_t from = 0;
        uint32_t to = 0;
        if (middle == std::string::npos || !parse_gpu(one.substr(0, middle), from) ||
            !parse_gpu(one.substr(middle + 1), to) || !map.emplace(from, to).second)
            return fail(ErrorKind::kBadInput, text,
                        "write it as 0xOLD=0xNEW,...; /sys/class/kfd/kfd/topology/nodes/*/gpu_id "
                        "are those here");
    }
    return map;
}

}  // namespace

Result<Settings> Settings::read(const SettingReader::Get& get) {
    Settings settings;
    SettingReader reader("amdgpu", get);
    reader.take_switch("parallel", settings.is_parallel);
    reader.take("staging-memory", settings.staging_bytes, parse_size);
    reader.take_span("copy-timeout", settings.copy_timeout, "1min 30s");
    reader.take_switch("check-memory", settings.checks_memory);
    reader.take("device-map", settings.rules.wanted, parse_map);
    reader.take_switch("firmware-check", settings.rules.firmware);
    reader.take_switch("sdma-firmware-check", settings.rules.sdma_firmware);
    reader.take_switch("caches-check", settings.rules.caches);
    reader.take_switch("gws-check", settings.rules.gws);
    reader.take_switch("vram-size-check", settings.rules.vram_size);
    reader.take_switch("capability-check", settings.rules.capability);
    reader.take_switch("numa-check", settings.rules.numa);
    CKPT_TRY(reader.finish());
    return settings;
}

}  // namespace checkpointd::amdgpu
