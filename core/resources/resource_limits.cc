// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/resources/resource_limits.h"

#include "core/kernel/proc_task.h"

namespace checkpointd {

Result<void> dump_limits(pid_t pid, images::task_rlimits_entry& out) {
    CKPT_ASSIGN(ProcLimits limits, read_limits(pid));
    for (const ProcLimit& limit : limits) {
        images::rlimit_entry& entry = *out.add_rlimits();
        entry.set_cur(limit.soft);
        entry.set_max(limit.hard);
    }
    return {};
}

}  // namespace checkpointd
