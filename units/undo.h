// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What units/ undoes of a job that failed or died. All is asked when the undo runs, of PID 1 and of /proc:
// the actions connect to PID 1 themselves, and may be run again.
#pragma once

#include <string>
#include <sys/types.h>

#include "core/transaction/journal.h"
#include "units/systemd.h"

namespace checkpointd {

// Adds units.remove-drop-in, units.await-stop, units.unstage, units.define, units.tell and units.cold-start.
void add_unit_undo_kinds(UndoTable& table);

// Undo: our drop-in is removed and forgotten by PID 1.
Result<uint64_t> undo_by_removing_drop_in(Journal& journal, const std::string& unit);

// Before PID 1 is told to stop the unit. Undo: waits until PID 1 has done so; only then can be told whether
// the original lives, and only then may the drop-in go that makes it a clean end.
Result<uint64_t> undo_by_awaiting_stop(Journal& journal, const std::string& unit);

// Undo: the unit is stopped and no failed one, if it still has our drop-in.
Result<uint64_t> undo_by_unstaging(Journal& journal, const std::string& unit);

// The same, unless the process `main_pid` lives: it dies with us until it is let go.
Result<uint64_t> undo_by_unstaging_unless_alive(Journal& journal, const std::string& unit, pid_t main_pid);

// Removes our drop-in and reloads, unless there is nothing to do.
Result<void> remove_drop_in(Systemd& systemd, const std::string& unit);

// Is our drop-in part of the unit as PID 1 has it loaded now?
Result<bool> has_drop_in(Systemd& systemd, const std::string& unit);

}  // namespace checkpointd
