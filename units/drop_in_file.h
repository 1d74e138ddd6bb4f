// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Our drop-in as a journaled file, for stop.h and stage.h.
#pragma once

#include <string>

#include "core/base/steps.h"
#include "core/transaction/journal.h"
#include "units/systemd.h"

namespace checkpointd {

// Registers the undo, writes the drop-in below /run and reloads. Returns the undo's id; running it removes
// the drop-in and reloads. `prefix` names the steps: PREFIX.write-drop-in, PREFIX.reload.
// The id is stored as soon as it exists: on failure the caller still has to undo it.
Result<void> put_drop_in(Systemd& systemd, Journal& journal, const std::string& unit,
                         const std::string& text, std::string_view prefix, Steps& steps,
                         uint64_t& undo_id);

}  // namespace checkpointd
