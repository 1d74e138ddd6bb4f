// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Processes that we fork beside ourselves: children of our parent (PID 1 for a worker), so that nobody but
// PID 1 waits for them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <sys/types.h>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "units/systemd.h"

namespace checkpointd {

// `run` is called in the new process, with all signals blocked and their handlers reset, and must not return.
// We may have threads: it must neither allocate nor take a lock. It is born in the cgroup of the directory
// `cgroup_fd`, or in ours (-1). `object` is for the error. `flags`: more of clone3(2)'s.
Result<pid_t> fork_sibling(int cgroup_fd, void (*run)(void* context), void* context, const char* object,
                           uint64_t flags = 0);

// In the child: gives up all capabilities but these (bits), which an exec keeps; it adds none. False with errno set.
bool keep_capabilities(uint64_t kept);
// In the child: says at which of its steps it failed, with errno, and ends.
[[noreturn]] void give_up(int report, unsigned step);
// Waits till the other end of `report` is closed, by exec or by give_up(). `steps`: what the child does, as "cannot
// ..." goes on.
Result<void> wait_born(ScopedFd report, std::span<const char* const> steps, const std::string& object,
                       Deadline deadline);

// The namespaces of a process that differ from ours, as flags of setns(2); a user namespace is never among them.
int differing_namespaces(pid_t pid);

}  // namespace checkpointd
