// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Tells a unit's main process of its checkpoints, if it asked for that: by a signal, by a message
// to a socket of its own, or by both. What they say is in checkpointd-hooks(7).
#pragma once

#include <sys/types.h>
#include <cstdint>

#include "core/base/error.h"
#include "core/transaction/journal.h"
#include "units/blockers.h"
#include "units/resolve.h"
#include "units/systemd.h"

namespace checkpointd {

// What has become of the process that is told; sent as the value of the signal.
enum class TellOutcome {
    kRestored = 16,  // it comes from an image
    kWentOn = 17,    // a snapshot was taken of it
    kFailed = 18,    // its checkpoint came to nothing
};

// A signal that would end the process, or a socket that is not there, is a blocker.
void check_can_be_told(pid_t main_pid, const TellSettings& settings, Blockers& blockers);

// Says that a checkpoint is about to begin and waits until the process is ready: a signal has been
// taken, the descriptor that came with the message is closed. kTimeout when it says nothing, unless
// the settings let that pass.
Result<void> tell_before(const UnitFacts& facts, WayDown way, Deadline deadline);

// Says what has become of it; does not wait. False when somebody could not be reached now.
bool tell_after(const UnitFacts& facts, pid_t main_pid, TellOutcome outcome);

// Before tell_before(), or before `main_pid` may run. Undo: the process, if it lives, is told
// `outcome`. So a program may hear of it twice, if we die in between. 0 where nobody asked.
Result<uint64_t> undo_by_telling(Journal& journal, const UnitFacts& facts, pid_t main_pid,
                                 TellOutcome outcome);
void add_tell_undo_kind(UndoTable& table);

}  // namespace checkpointd
