// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Units that go to disk when the system goes down: they are ordered before checkpointd-shutdown.service, so
// systemd stops that one first, and waits with them until its stop command has taken them to disk.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/base/error.h"

namespace checkpointd {

inline constexpr const char* kShutdownUnit = "checkpointd-shutdown.service";
// Starts that one at once, while those that it is ordered after may still be starting.
inline constexpr const char* kShutdownBeginUnit = "checkpointd-shutdown-begin.service";
inline constexpr std::string_view kShutdownDropInName = "zz-checkpointd-shutdown.conf";

// The drop-in's text.
std::string shutdown_drop_in();

// Names of the services that have a unit file below `unit_dirs` (templates too) or an entry in `running_dir`
// ("invocation:UNIT"), sorted. Those that start before file systems are there (DefaultDependencies=no) and ours
// are left out: they could not wait for us.
std::vector<std::string> find_services(const std::vector<std::string>& unit_dirs, const std::string& running_dir);

// Writes the drop-in of each of `names` that `asks` and may stand still, below `directory` (a generator's
// output). Returns those.
Result<std::vector<std::string>> write_shutdown_order(const std::vector<std::string>& names,
                                                      const std::string& directory,
                                                      const std::function<bool(const std::string&)>& asks);

}  // namespace checkpointd
