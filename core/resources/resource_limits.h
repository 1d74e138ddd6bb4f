// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <sys/types.h>

#include "core/base/error.h"
#include "images/proto/core.pb.h"

namespace checkpointd {

// All 16 resource limits in the order of RLIMIT_*.
Result<void> dump_limits(pid_t pid, images::task_rlimits_entry& out);

}  // namespace checkpointd
