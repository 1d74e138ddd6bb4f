// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <sys/types.h>

#include "core/base/error.h"

namespace checkpointd {

// /proc/PID/stat, the fields that a checkpoint needs; see proc_pid_stat(5). Addresses read as 0 and the
// exit code as 0 when the reader may not ptrace the task.
struct ProcStat {
    pid_t pid = 0;
    std::string comm;  // any bytes but NUL, parentheses and newlines included
    char state = '?';  // R S D T t Z X I
    pid_t ppid = 0;
    pid_t pgrp = 0;
    pid_t session = 0;
    int tty_nr = 0;
    uint32_t flags = 0;  // PF_*
    int64_t nice = 0;
    int64_t num_threads = 0;
    uint64_t start_time = 0;  // clock ticks after boot; with the PID it names a process for ever
    uint64_t start_code = 0;
    uint64_t end_code = 0;
    uint64_t start_stack = 0;
    uint64_t start_data = 0;
    uint64_t end_data = 0;
    uint64_t start_brk = 0;
    uint64_t arg_start = 0;
    uint64_t arg_end = 0;
    uint64_t env_start = 0;
    uint64_t env_end = 0;
    uint32_t processor = 0;  // CPU on which it ran last
    uint32_t exit_code = 0;  // as waitpid(2) gives it
};

Result<ProcStat> parse_stat(std::string_view text);
Result<ProcStat> read_stat(pid_t pid);

}  // namespace checkpointd
