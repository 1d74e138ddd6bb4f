// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <csignal>
#include <vector>

#include "core/base/error.h"
#include "core/inject/remote_syscalls.h"
#include "core/kernel/proc_status.h"
#include "images/proto/core.pb.h"

namespace checkpointd {

// What a process does with each signal: 62 records, SIGKILL and SIGSTOP left out. The task is asked only
// about those that /proc says it catches or ignores, and about SIGCHLD, whose SA_NOCLDWAIT and
// SA_NOCLDSTOP act with the default handler as well.
Result<void> dump_signal_actions(const ProcStatus& status, RemoteSyscalls& remote,
                                 images::task_core_entry& out);
// A queue of pending signals.
void dump_signal_queue(const std::vector<siginfo_t>& queue, images::signal_queue_entry& out);
// The alternate signal stack of a thread.
Result<void> dump_signal_stack(RemoteSyscalls& remote, images::thread_sas_entry& out);

}  // namespace checkpointd
