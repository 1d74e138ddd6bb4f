// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Files and directories that are open but have no name any more. Their content is carried.
#pragma once

#include "core/resources/kind.h"

namespace checkpointd {

// Notes that file `file_id` is a ghost; one ghost serves all descriptions of an inode.
Result<void> dump_ghost(const OpenFile& file, FileDumpContext& context, uint32_t file_id);

// A descriptor of the ghost's inode, made on first demand; `path` is where it once was.
Result<Slot> plan_ghost(uint32_t ghost_id, const std::string& path, FilePlanContext& context);

}  // namespace checkpointd
