// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <sys/types.h>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"

namespace checkpointd {

// pidfd_open(2). Only thread group leaders can be named (kernel floor 6.1). kGone where there is none.
Result<ScopedFd> pidfd_open(pid_t pid);

// The process that a pidfd names, as our PID namespace numbers it. kGone where it has been reaped.
Result<pid_t> pid_of_pidfd(int pidfd);

// pidfd_getfd(2): a duplicate, close-on-exec, of descriptor `fd` of the process: both share one struct
// file. `object` in errors is "pid N fd M" as far as known to the caller; EBADF where it has no such fd.
Result<ScopedFd> pidfd_get_fd(int pidfd, int fd);

// pidfd_send_signal(2). kGone where the process has been reaped.
Result<void> pidfd_send_signal(int pidfd, int signal);

}  // namespace checkpointd
