// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The definition of a transient unit (systemd-run, scopes): a file below /run/systemd/transient that PID 1
// removes with the unit.
#pragma once

#include <string>
#include <sys/types.h>

#include "core/transaction/journal.h"
#include "units/resolve.h"
#include "units/systemd.h"

namespace checkpointd {

// The text of the fragment and of the drop-ins that `systemctl set-property --runtime` put beside it.
Result<std::string> read_definition(Systemd& systemd, const std::string& unit);

// Undo: the definition is the unit's again, in the place of what the unit was started with. For a unit
// that is gone by then PID 1 removes the file with the rest of it. The caller reloads.
Result<uint64_t> undo_by_defining(Journal& journal, const std::string& unit,
                                  const std::string& definition);
void add_definition_undo_kind(UndoTable& table);

// Starts the transient unit of `facts`, whose settings come from our drop-in: StartTransientUnit makes it
// one that vanishes at its end. A scope takes in `process`. Returns the job.
Result<std::string> start_transient(Systemd& systemd, const UnitFacts& facts, pid_t process);

}  // namespace checkpointd
