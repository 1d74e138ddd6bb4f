// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Which units can be carried at all, and in which of their states.
#pragma once

#include <string>

#include "units/blockers.h"
#include "units/resolve.h"
#include "units/systemd.h"

namespace checkpointd {

// Units that are refused whatever they do: logins, user managers, PID 1's own, kinds without processes.
Result<void> check_name(const std::string& id);

// A unit can be carried while its program runs, and no command beside it. Sets facts.exec_index.
// `stop_is_queued`: so it is, and waits for us.
Result<void> check_state(Systemd& systemd, UnitFacts& facts, bool stop_is_queued, Blockers& blockers);

}  // namespace checkpointd
