// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <sys/types.h>

#include "core/base/error.h"

namespace checkpointd {

// Does the process that had this PID and start time (clock ticks after boot, /proc/PID/stat) live on? One
// that got SIGKILL keeps its number while it frees its memory and until its parent waits: it counts as
// dead, and is waited for until that can be told. kTimeout after half a minute.
Result<bool> process_lives(pid_t pid, uint64_t start_time);

}  // namespace checkpointd
