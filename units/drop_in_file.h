// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Our drop-ins as files: journaled below /run, for stop.h and stage.h, or plain, as a generator writes them.
#pragma once

#include <string>

#include "core/base/steps.h"
#include "core/transaction/journal.h"
#include "units/systemd.h"

namespace checkpointd {

// Writes `path`, which is DIRECTORY/UNIT.d/NAME, and makes its folder; DIRECTORY is there.
Result<void> write_drop_in_file(const std::string& path, const std::string& text);

// Registers the undo, writes the drop-in below /run and has PID 1 read it. Returns the undo's id; running it removes
// the drop-in and reloads. `prefix` names the steps: PREFIX.write-drop-in, PREFIX.reload.
// The id is stored as soon as it exists: on failure the caller still has to undo it.
Result<void> put_drop_in(Systemd& systemd, Journal& journal, const std::string& unit,
                         const std::string& text, std::string_view prefix, Steps& steps,
                         uint64_t& undo_id);

}  // namespace checkpointd
