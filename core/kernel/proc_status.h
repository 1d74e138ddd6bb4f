// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"

namespace checkpointd {

// /proc/PID/task/TID/status; see proc_pid_status(5). Signal sets are in kernel order: signal N is bit N-1.
struct ProcStatus {
    std::string name;  // unescaped
    uint32_t umask = 0;
    char state = '?';
    pid_t tgid = 0;
    pid_t pid = 0;
    pid_t ppid = 0;
    pid_t tracer_pid = 0;
    std::array<uint32_t, 4> uids{};  // real, effective, saved, file system
    std::array<uint32_t, 4> gids{};
    std::vector<uint32_t> groups;
    std::vector<pid_t> ns_pids;  // in each PID namespace, from the reader's inwards
    std::vector<pid_t> ns_pgids;
    std::vector<pid_t> ns_sids;
    bool kernel_thread = false;  // absent (before Linux 6.7): false
    unsigned threads = 0;
    uint64_t sig_pending = 0;         // of this thread
    uint64_t shared_sig_pending = 0;  // of the process
    uint64_t sig_blocked = 0;
    uint64_t sig_ignored = 0;
    uint64_t sig_caught = 0;
    uint64_t cap_inheritable = 0;
    uint64_t cap_permitted = 0;
    uint64_t cap_effective = 0;
    uint64_t cap_bounding = 0;
    uint64_t cap_ambient = 0;
    bool no_new_privs = false;
    unsigned seccomp_mode = 0;  // SECCOMP_MODE_*
};

Result<ProcStatus> parse_status(std::string_view text);
Result<ProcStatus> read_status(pid_t pid);
Result<ProcStatus> read_thread_status(pid_t pid, pid_t tid);

// The number of a process or thread in its own PID namespace; `pid` itself where it is gone.
pid_t innermost_pid(pid_t pid);

}  // namespace checkpointd
