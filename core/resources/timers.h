// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <functional>
#include <sys/types.h>

#include "core/base/error.h"
#include "core/inject/remote_syscalls.h"
#include "images/proto/core.pb.h"

namespace checkpointd {

// The three interval timers and all timers of timer_create(2), with what is left on them.
// `image_tid` translates a thread id as we see it into the one that goes into the image.
Result<void> dump_timers(pid_t pid, const std::function<pid_t(pid_t)>& image_tid,
                         RemoteSyscalls& remote, images::task_timers_entry& out);

}  // namespace checkpointd
