// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Processes that we fork beside ourselves: children of our parent (PID 1 for a worker), so that nobody but
// PID 1 waits for them.
#pragma once

#include <sys/types.h>

#include "core/base/error.h"

namespace checkpointd {

// `run` is called in the new process, with all signals blocked and their handlers reset, and must not return.
// We may have threads: it must neither allocate nor take a lock. It is born in the cgroup of the directory
// `cgroup_fd`, or in ours (-1). `object` is for the error.
Result<pid_t> fork_sibling(int cgroup_fd, void (*run)(void* context), void* context, const char* object);

// The namespaces of a process that differ from ours, as flags of setns(2); a user namespace is never among them.
int differing_namespaces(pid_t pid);

}  // namespace checkpointd
