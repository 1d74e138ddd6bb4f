// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <sys/types.h>

#include "core/base/error.h"
#include "images/proto/core.pb.h"
#include "images/proto/tasks.pb.h"

namespace checkpointd {

// Policy, priority and nice value of a thread. SCHED_DEADLINE is kUnsupported.
Result<void> dump_scheduling(pid_t tid, images::thread_core_entry& out);
// CPU affinity, I/O priority and timer slack, which the format has no place for.
Result<void> dump_scheduling_extra(pid_t tid, images::thread_extra_entry& out);

}  // namespace checkpointd
