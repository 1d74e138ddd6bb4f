// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include "core/restore/restore.h"

namespace checkpointd {

// kConflict, naming the holders, if a PID or TID of the plan is taken as such, or as the number of a
// session or group of somebody else. The dead are waited for, up to two seconds: init reaps orphans in its
// own time, and a restore may follow a checkpoint closely.
Result<void> check_conflicts(const RestorePlan& plan);

// That `id` is in use, and by whom.
Error taken_number(pid_t id);

}  // namespace checkpointd
