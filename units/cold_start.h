// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The way out of a revival that failed: the unit starts as its unit files say.
#pragma once

#include <string>

#include "core/transaction/journal.h"
#include "units/systemd.h"

namespace checkpointd {

inline constexpr const char* kColdStart = "units.cold-start";

// Registers it. Undo: our drop-in goes; a gate that still waits lets the unit pass; a unit that has gone on
// to the stage is started again from its beginning, within the start job that dependants wait for; one that
// failed on the way is started anew. A unit that runs a program of its own, or was stopped, is left alone.
Result<uint64_t> undo_by_cold_start(Journal& journal, const std::string& unit, const std::string& reason);

Result<void> run_cold_start(const UndoArgs& args);

}  // namespace checkpointd
