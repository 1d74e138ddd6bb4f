// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <sys/types.h>

#include "core/base/error.h"
#include "core/inject/remote_syscalls.h"
#include "core/inject/seize.h"
#include "images/proto/core.pb.h"

namespace checkpointd {

// The robust futex list, parent-death signal and clear-child-tid address, restartable sequence.
Result<void> dump_thread_pointers(const SeizedThread& thread, RemoteSyscalls& remote,
                                  images::core_entry& out);
// What a process registered for membarrier(2), and whether it adopts orphans.
Result<void> dump_process_flags(RemoteSyscalls& remote, images::task_core_entry& out);

}  // namespace checkpointd
