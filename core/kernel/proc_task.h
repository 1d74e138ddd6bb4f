// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The smaller files below /proc/PID.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"

namespace checkpointd {

inline constexpr uint64_t kUnlimited = ~uint64_t{0};  // RLIM_INFINITY

struct ProcLimit {
    uint64_t soft = kUnlimited;
    uint64_t hard = kUnlimited;
};
// Indexed by RLIMIT_*.
using ProcLimits = std::array<ProcLimit, 16>;
// /proc/PID/limits: unlike prlimit(2) it asks for no CAP_SYS_RESOURCE.
Result<ProcLimits> parse_limits(std::string_view text);
Result<ProcLimits> read_limits(pid_t pid);

// /proc/PID/auxv as the words it consists of, the terminating AT_NULL pair included.
Result<std::vector<uint64_t>> parse_auxv(std::string_view bytes);
Result<std::vector<uint64_t>> read_auxv(pid_t pid);

// One timer of timer_create(2), as /proc/PID/timers lists them. What is left on it is not there.
struct ProcTimer {
    int32_t id = 0;
    int signal = 0;
    uint64_t value = 0;   // sigev_value
    int notify = 0;       // SIGEV_*, SIGEV_THREAD_ID included
    pid_t thread = 0;     // whom to notify, where SIGEV_THREAD_ID
    int32_t clock = 0;    // clockid_t
};
Result<std::vector<ProcTimer>> parse_timers(std::string_view text);
Result<std::vector<ProcTimer>> read_timers(pid_t pid);

// /proc/PID/timens_offsets, nanoseconds that the task's clocks are ahead of the host's.
struct TimeOffsets {
    int64_t monotonic = 0;
    int64_t boottime = 0;
};
Result<TimeOffsets> parse_time_offsets(std::string_view text);
// Zero where the kernel has no time namespaces.
Result<TimeOffsets> read_time_offsets(pid_t pid);

// The path in the cgroup2 hierarchy ("0::PATH") of /proc/PID/cgroup; none where there is no such line.
std::optional<std::string> parse_cgroup2_path(std::string_view text);
Result<std::optional<std::string>> read_cgroup2_path(pid_t pid);

// All processes that /proc shows, in no order.
Result<std::vector<pid_t>> read_process_list();
// Thread ids of a process, the leader first, the others ascending.
Result<std::vector<pid_t>> read_task_list(pid_t pid);
// Numbers of a process's open descriptors, ascending.
Result<std::vector<int>> read_descriptor_list(pid_t pid);
// Direct children of all threads of a process, in the kernel's order.
Result<std::vector<pid_t>> read_children(pid_t pid);

// The number behind "net:[4026531840]" for /proc/PID/ns/NAME; 0 where the kernel has no such kind.
Result<uint64_t> read_namespace_id(pid_t pid, const std::string& name);

}  // namespace checkpointd
