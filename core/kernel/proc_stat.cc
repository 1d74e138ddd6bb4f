// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/kernel/proc_stat.h"

#include <array>
#include <fcntl.h>

#include "core/base/io.h"
#include "core/kernel/proc_text.h"

namespace checkpointd {
namespace {

// Numbers of the fields in proc_pid_stat(5), which counts from 1.
constexpr size_t kFirstNumber = 4;
constexpr size_t kLastNumber = 52;
using Numbers = std::array<int64_t, kLastNumber + 1>;

Error bad_stat(std::string_view why) {
    return Error{ErrorKind::kInternal, "/proc/PID/stat", fmt::format("cannot parse: {}", why), {}, 0, {}};
}

// Values may be unsigned 64-bit (RLIM_INFINITY in rsslim), so both readings are tried.
std::optional<int64_t> any_number(std::string_view word) {
    if (auto value = to_number<int64_t>(word))
        return value;
    auto value = to_number<uint64_t>(word);
    return value ? std::optional(static_cast<int64_t>(*value)) : std::nullopt;
}

void assign(ProcStat& stat, const Numbers& n) {
    stat.ppid = static_cast<pid_t>(n[4]);
    stat.pgrp = static_cast<pid_t>(n[5]);
    stat.session = static_cast<pid_t>(n[6]);
    stat.tty_nr = static_cast<int>(n[7]);
    stat.flags = static_cast<uint32_t>(n[9]);
    stat.nice = n[19];
    stat.num_threads = n[20];
    stat.start_time = static_cast<uint64_t>(n[22]);
    stat.start_code = static_cast<uint64_t>(n[26]);
    stat.end_code = static_cast<uint64_t>(n[27]);
    stat.start_stack = static_cast<uint64_t>(n[28]);
    stat.processor = static_cast<uint32_t>(n[39]);
    stat.start_data = static_cast<uint64_t>(n[45]);
    stat.end_data = static_cast<uint64_t>(n[46]);
    stat.start_brk = static_cast<uint64_t>(n[47]);
    stat.arg_start = static_cast<uint64_t>(n[48]);
    stat.arg_end = static_cast<uint64_t>(n[49]);
    stat.env_start = static_cast<uint64_t>(n[50]);
    stat.env_end = static_cast<uint64_t>(n[51]);
    stat.exit_code = static_cast<uint32_t>(n[52]);
}

}  // namespace

Result<ProcStat> parse_stat(std::string_view text) {
    // The name may hold blanks, newlines and parentheses: it ends at the last one.
    size_t open = text.find('(');
    size_t close = text.rfind(')');
    if (open == text.npos || close == text.npos || close < open)
        return tl::unexpected(bad_stat("no name in parentheses"));
    ProcStat stat;
    auto pid = to_number<int32_t>(trim(text.substr(0, open)));
    if (!pid)
        return tl::unexpected(bad_stat("no pid"));
    stat.pid = *pid;
    stat.comm = text.substr(open + 1, close - open - 1);
    std::string_view rest = trim(text.substr(close + 1));
    auto state = next_word(rest);
    if (!state || state->size() != 1)
        return tl::unexpected(bad_stat("no state"));
    stat.state = state->front();
    Numbers numbers{};
    for (size_t i = kFirstNumber; i <= kLastNumber; ++i) {
        auto word = next_word(rest);
        auto value = word ? any_number(*word) : std::nullopt;
        if (!value)
            return tl::unexpected(bad_stat(fmt::format("field {}", i)));
        numbers[i] = *value;
    }
    assign(stat, numbers);
    return stat;
}

Result<ProcStat> read_stat(pid_t pid) {
    CKPT_ASSIGN(std::string text, read_file(AT_FDCWD, fmt::format("/proc/{}/stat", pid)));
    return parse_stat(text);
}

}  // namespace checkpointd
