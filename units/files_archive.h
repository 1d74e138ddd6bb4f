// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Content of directories that systemd removes when a unit stops (RuntimeDirectory=, PrivateTmp=): saved
// into one tar file of the image and put back into the fresh directories of the staged unit.
#pragma once

#include <string>
#include <sys/types.h>

#include "core/base/error.h"
#include "units/resolve.h"

namespace checkpointd {

// Is there anything to save?
bool has_unit_files(const UnitFacts& facts);

// Writes the content of facts.directories, as process `pid` of the unit sees them, to `out_fd` as a POSIX
// tar archive with absolute member names. Sockets are left out: whoever owns them binds them anew.
Result<void> save_unit_files(const UnitFacts& facts, pid_t pid, int out_fd);

// Puts an archive back below the root directory of the process `pid` (the stage helper). Only members below
// facts.directories are written; symbolic links are never followed. Also writes facts.pid_file back.
Result<void> restore_unit_files(const UnitFacts& facts, pid_t pid, int in_fd);

// Makes facts.pid_file, where there is one, say `main_pid`, which is not what the program calls itself: systemd
// reads it again at times, and would take a stranger for the unit's main process.
Result<void> correct_pid_file(const UnitFacts& facts, pid_t main_pid);

}  // namespace checkpointd
