// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <sys/resource.h>
#include <sys/types.h>
#include <time.h>
#include <vector>

#include "core/base/error.h"
#include "core/kernel/proc_maps.h"

namespace checkpointd {

// What the tasks will inherit from us, and what this kernel can do: a plan only changes what differs.
struct HostFacts {
    std::vector<ProcMapping> mappings;
    std::vector<rlimit> limits;      // by RLIMIT_*
    timespec monotonic_offset{};     // of the time namespace that children get
    timespec boottime_offset{};
    timespec monotonic{};
    timespec boottime{};
    timespec realtime{};
    bool timer_ids = false;          // PR_TIMER_CREATE_RESTORE_IDS (Linux 6.15)
    int oom_score_adj = 0;
    int nice = 0;
    int policy = 0;
    std::string cpus;                // affinity, as sched_getaffinity(2) fills it
    uint32_t io_priority = 0;
    uint64_t timer_slack_ns = 0;
    std::optional<uint32_t> login;   // loginuid; none where the kernel has no audit
    std::optional<uint32_t> coredump_filter;
    uint64_t permitted = 0;          // capabilities
    uint64_t all_capabilities = 0;   // that this kernel knows
    uint32_t highest_descriptor = 0;
};

Result<HostFacts> host_facts();

}  // namespace checkpointd
