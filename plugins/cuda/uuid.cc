// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/uuid.h"

#include <charconv>

#include <fmt/core.h>

namespace checkpointd::cuda {
namespace {

constexpr size_t kUuidText = 40;  // with "GPU-"

}  // namespace

std::string to_string(const Uuid& uuid) {
    std::string text = "GPU-";
    for (size_t i = 0; i < sizeof(uuid.bytes); ++i) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            text += '-';
        text += fmt::format("{:02x}", uuid.bytes[i]);
    }
    return text;
}

Result<Uuid> parse_uuid(const std::string& text) {
    Uuid uuid{};
    std::string digits;
    for (char c : text.starts_with("GPU-") ? text.substr(4) : text)
        if (c != '-')
            digits += c;
    bool good = text.size() == kUuidText && digits.size() == 2 * sizeof(uuid.bytes);
    for (size_t i = 0; good && i < sizeof(uuid.bytes); ++i) {
        const char* at = digits.data() + 2 * i;
        good = std::from_chars(at, at + 2, uuid.bytes[i], 16).ptr == at + 2;
    }
    if (!good)
        return fail(ErrorKind::kBadInput, fmt::format("'{}'", text), "is no UUID of a device");
    return uuid;
}

}  // namespace checkpointd::cuda
