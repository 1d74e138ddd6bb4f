// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include "core/resources/kinds.h"

namespace checkpointd {

// What a caller calls a file that it will provide itself: "file[MNT:INO]".
std::string external_key(const OpenFile& file);

// The path to open and, where the file has no name any more, the ghost to make: shared by FIFOs.
Result<void> dump_path(const OpenFile& file, FileDumpContext& context, images::reg_file_entry& entry);

// The record of this id, or null.
const images::file_entry* find_file(const FileImages& images, uint32_t file_id);
// The ghost that stands for a file, or null.
const uint32_t* find_ghost(const FileImages& images, uint32_t file_id);

}  // namespace checkpointd
