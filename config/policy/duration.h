// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <chrono>
#include <string>
#include <string_view>

#include "core/base/error.h"

namespace checkpointd {

using Microseconds = std::chrono::microseconds;
// Stands for "infinity".
inline constexpr Microseconds kForever = Microseconds::max();

// A time span as systemd.time(7) writes it: "5min 20s", "1h30min", "90" (seconds), "1.5s", "infinity".
// Units: us ms s min h d w and their long names. Refuses what is negative, empty or would overflow.
Result<Microseconds> parse_duration(std::string_view text);
// The shortest spelling that parse_duration() reads back as the same value.
std::string format_duration(Microseconds span);

}  // namespace checkpointd
