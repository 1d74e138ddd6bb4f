// SPDX-License-Identifier: LGPL-2.1-or-later
//
// flock(2), fcntl(2) and open file description locks.
#pragma once

#include "core/resources/kind.h"

namespace checkpointd {

// Notes the locks that the fdinfo of a descriptor tells of.
void collect_locks(const OpenFile& file, uint32_t file_id, FileDumpContext& context);

// Takes a lock again through a descriptor that has its final number. Locks of descriptions that several
// tasks share are taken once, POSIX locks in the task that had them.
void plan_lock(const images::file_lock_entry& lock, Program& late, Plan& plan);

}  // namespace checkpointd
