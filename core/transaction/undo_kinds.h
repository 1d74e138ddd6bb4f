// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The undo kinds that need nothing but the kernel. Each has its registration beside its action, so that
// the arguments are written and read in one place.
#pragma once

#include <string>
#include <sys/types.h>

#include "core/transaction/journal.h"

namespace checkpointd {

// Adds core.kill-process, core.remove-tree, core.thaw-cgroup and core.empty-cgroup.
void add_core_undo_kinds(UndoTable& table);

// Undo: SIGKILL of the process, if it still is the one that has this PID now (same start time).
Result<uint64_t> undo_by_killing(Journal& journal, pid_t pid);

// Undo: remove the directory or file with all that is in it; absent is fine. `path` must be absolute.
Result<uint64_t> undo_by_removing(Journal& journal, const std::string& path);

// Undo: write 0 to `cgroup_dir`/cgroup.freeze; a vanished cgroup is fine.
Result<uint64_t> undo_by_thawing(Journal& journal, const std::string& cgroup_dir);

// Undo: SIGKILL for everything in the cgroup, and a wait for its death; a vanished cgroup is fine.
Result<uint64_t> undo_by_emptying(Journal& journal, const std::string& cgroup_dir);

// Start time of a process in clock ticks since boot (field 22 of /proc/PID/stat); with the PID it names
// one process of this boot. kGone when there is none.
Result<uint64_t> process_start_time(pid_t pid);

// SIGKILL for that process, and waits until it is dead; success when it is gone already.
Result<void> kill_process(pid_t pid, uint64_t start_time);

}  // namespace checkpointd
