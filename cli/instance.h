// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "core/base/error.h"

namespace checkpointd::cli {

inline constexpr const char* kInstanceHelp =
    "UNIT is an instance name, as of checkpoint@.service: it may be escaped";

// What systemd-escape(1) made of a name: "\x2d" is '-' again, and so on. What is no escape stays.
std::string unescape(std::string_view name);

// Calls `work` with the unit's name. That of an instance may be escaped or not, and both are names of units:
// it is taken as it stands first, and unescaped if there is no such unit.
Result<void> for_unit(const std::string& name, bool is_instance,
                      const std::function<Result<void>(const std::string&)>& work);

}  // namespace checkpointd::cli
