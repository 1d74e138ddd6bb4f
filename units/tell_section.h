// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The section [X-Checkpointd] of unit files, which systemd skips (systemd.unit(5), "X-").
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "config/policy/tell.h"
#include "core/base/error.h"
#include "units/blockers.h"
#include "units/systemd.h"

namespace checkpointd {

// Lays what one file says over `settings`; an empty value takes back what files before it said.
// Errors are called FILE:LINE, and all of the file come at once.
std::vector<Error> read_tell_section(std::string_view text, const std::string& file,
                                     const std::string& unit, TellSettings& settings);

// %i, %n, %p, %t and %% as systemd expands them in the files of `unit`; others are errors.
Result<std::string> expand_specifiers(std::string_view text, std::string_view unit);

// What the unit file and the drop-ins of `unit` say, in systemd's order. What is wrong in them is a
// blocker.
Result<TellSettings> tell_settings_of(Systemd& systemd, const std::string& unit,
                                      Blockers& blockers);

}  // namespace checkpointd
