// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What waits in pipes and FIFOs.
#pragma once

#include "core/resources/kind.h"

namespace checkpointd {

// Looks at what waits behind the open file without consuming it and notes it under `pipe_id`, once.
// A write-only descriptor tells only the pipe's size.
Result<void> dump_pipe_content(const OpenFile& file, uint32_t pipe_id,
                               std::map<uint32_t, PipeContent>& into);

// Sets the size of a fresh pipe and fills it through its writable descriptor.
void plan_pipe_content(const PipeContent& content, std::string_view label, Slot writable,
                       FilePlanContext& context);

}  // namespace checkpointd
