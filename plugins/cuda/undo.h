// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <string>

#include "core/base/error.h"
#include "plugins/cuda/backend.h"

namespace checkpointd::cuda {

// Brings back the process that a dead job left, as it told the journal (undo_record.h). One that has ended is left alone.
Result<void> undo_recorded(const std::string& record, Backend::Deadline deadline);

}  // namespace checkpointd::cuda
