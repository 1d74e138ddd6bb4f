// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include "core/base/error.h"
#include "core/inject/remote_syscalls.h"
#include "core/kernel/proc_status.h"
#include "images/proto/core.pb.h"

namespace checkpointd {

// Identities, groups, capabilities, securebits and no_new_privs of one thread.
Result<void> dump_credentials(const ProcStatus& status, RemoteSyscalls& remote,
                              images::creds_entry& out);

}  // namespace checkpointd
