// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Reading JSON that may be anything: every access is checked, nothing throws.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "core/base/error.h"

namespace checkpointd::images {

// A JSON object from text; kBadImage if it is none.
Result<nlohmann::json> parse_json_object(const std::string& text, const std::string& object);

Result<std::string> json_string(const nlohmann::json& json, const char* key,
                                const std::string& object);
Result<uint64_t> json_number(const nlohmann::json& json, const char* key,
                             const std::string& object);
// The array under `key`, which must be one; the pointer lives as long as `json`.
Result<const nlohmann::json*> json_array(const nlohmann::json& json, const char* key,
                                         const std::string& object);

}  // namespace checkpointd::images
