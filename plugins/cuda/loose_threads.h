// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <chrono>
#include <map>
#include <sys/types.h>

#include "core/base/error.h"
#include "plugins/plugin.h"

namespace checkpointd::cuda {

// The threads of held processes that run, because the driver works in them. What stops one meanwhile, as any SIGCONT does,
// would hold up the driver's call: so whoever waits for one tends all of them.
class LooseThreads {
  public:
    // Of a process whose tasks are not held (any more) it runs anyhow, and is none of these.
    Result<void> run(const ckptd_host& host, pid_t pid, pid_t tid);
    // Nothing where it does not run by us. After a failure it is none of these any more.
    Result<void> hold(pid_t pid, std::chrono::steady_clock::time_point deadline);
    void tend() const;
    bool empty() const { return loose_.empty(); }

  private:
    struct Loose {
        const ckptd_host* host;
        pid_t tid;
    };
    std::map<pid_t, Loose> loose_;  // by PID
};

}  // namespace checkpointd::cuda
