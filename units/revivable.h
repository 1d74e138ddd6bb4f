// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <string>

#include "core/base/error.h"
#include "units/systemd.h"

namespace checkpointd {

// Can a unit be restored while it starts (gate.h)? For that the bus and the daemon must be able to start
// before it. All reasons why not come in one error.
Result<void> check_revivable(Systemd& systemd, const std::string& unit);

}  // namespace checkpointd
