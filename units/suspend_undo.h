// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What suspend.cc and resume.cc share: their undo records, and the drop-in that lets PID 1 listen to us.
#pragma once

#include <string>
#include <sys/types.h>

#include "core/base/steps.h"
#include "core/transaction/journal.h"
#include "units/systemd.h"

namespace checkpointd {

// A placeholder and the process whose place it takes or gives back.
struct PlaceholderPair {
    std::string unit;
    std::string cgroup_dir;
    pid_t placeholder = 0;
    pid_t main_pid = 0;
    std::string status;  // the unit's StatusText of before
};

// On the way down, from the placeholder's birth on. Undo: the main process lives, so it becomes that again
// and the placeholder ends; it is dead, so the rest of the unit dies and the placeholder stays.
Result<uint64_t> undo_by_taking_back(Journal& journal, const PlaceholderPair& pair);
// On the way up, before the numbers are given back. Undo: they are held again.
Result<uint64_t> undo_by_holding_numbers(Journal& journal, pid_t placeholder);
// On the way up, before the restored tasks are let go. Undo: all but the placeholder die.
Result<uint64_t> undo_by_ending_restored(Journal& journal, const PlaceholderPair& pair);
// On the way up, before that. Undo: the restored main process lives, so PID 1 learns of it and the
// placeholder ends; it is dead, so the unit stays suspended. Also the ordinary way forward.
Result<uint64_t> undo_by_finishing(Journal& journal, const PlaceholderPair& pair);

// Where PID 1 would take no message of the unit: put_drop_in() with NotifyAccess=all.
Result<void> put_access_drop_in(Systemd& systemd, Journal& journal, const std::string& unit,
                                std::string_view prefix, Steps& steps, uint64_t& undo_id);

}  // namespace checkpointd
