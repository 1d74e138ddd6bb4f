// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/kernel/proc_task.h"

#include <algorithm>
#include <csignal>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <memory>

#include "core/base/io.h"
#include "core/kernel/proc_text.h"

namespace checkpointd {
namespace {

Error bad(std::string_view file, std::string_view line) {
    return Error{ErrorKind::kInternal, std::string(file), fmt::format("cannot parse '{}'", line), {}, 0, {}};
}

Result<std::string> read_proc(pid_t pid, std::string_view name) {
    return read_file(AT_FDCWD, fmt::format("/proc/{}/{}", pid, name));
}

// In the order of RLIMIT_*; see lnames in fs/proc/base.c.
constexpr std::string_view kLimitNames[] = {
    "Max cpu time",      "Max file size",     "Max data size",         "Max stack size",
    "Max core file size", "Max resident set", "Max processes",         "Max open files",
    "Max locked memory", "Max address space", "Max file locks",        "Max pending signals",
    "Max msgqueue size", "Max nice priority", "Max realtime priority", "Max realtime timeout",
};

std::optional<uint64_t> limit_value(std::string_view& text) {
    auto word = next_word(text);
    if (!word)
        return std::nullopt;
    return *word == "unlimited" ? std::optional(kUnlimited) : to_number<uint64_t>(*word);
}

int notify_kind(std::string_view name) {
    if (name == "signal")
        return SIGEV_SIGNAL;
    if (name == "none")
        return SIGEV_NONE;
    return name == "thread" ? SIGEV_THREAD : -1;
}

// "signal/tid.123": see show_timer in fs/proc/base.c.
bool parse_notify(std::string_view text, ProcTimer& timer) {
    size_t slash = text.find('/');
    size_t dot = text.find('.', slash == text.npos ? 0 : slash);
    if (slash == text.npos || dot == text.npos)
        return false;
    timer.notify = notify_kind(text.substr(0, slash));
    if (timer.notify < 0)
        return false;
    if (text.substr(slash + 1, dot - slash - 1) != "tid")
        return true;
    auto tid = to_number<int32_t>(text.substr(dot + 1));
    timer.notify |= SIGEV_THREAD_ID;
    timer.thread = tid.value_or(0);
    return tid.has_value();
}

// "10/0000000000001234"; %p pads to the width of a pointer.
bool parse_signal(std::string_view text, ProcTimer& timer) {
    size_t slash = text.find('/');
    if (slash == text.npos)
        return false;
    auto signal = to_number<int32_t>(text.substr(0, slash));
    std::string_view pointer = text.substr(slash + 1);
    auto value = pointer == "(null)" ? std::optional<uint64_t>(0) : to_number<uint64_t>(pointer, 16);
    if (!signal || !value)
        return false;
    timer.signal = *signal;
    timer.value = *value;
    return true;
}

bool parse_timer_line(std::string_view key, std::string_view value, std::vector<ProcTimer>& timers) {
    if (key == "ID") {
        auto id = to_number<int32_t>(value);
        timers.push_back(ProcTimer{.id = id.value_or(-1)});
        return id.has_value();
    }
    if (timers.empty())
        return false;
    if (key == "signal")
        return parse_signal(value, timers.back());
    if (key == "notify")
        return parse_notify(value, timers.back());
    if (key == "ClockID") {
        auto clock = to_number<int32_t>(value);
        timers.back().clock = clock.value_or(0);
        return clock.has_value();
    }
    return true;  // lines of a newer kernel
}

struct CloseDir {
    void operator()(DIR* dir) const { closedir(dir); }
};

// Entries of a folder that are called by numbers.
Result<std::vector<int>> list_numbers(const std::string& path) {
    std::unique_ptr<DIR, CloseDir> dir(opendir(path.c_str()));
    if (!dir)
        return fail_errno(path, "cannot be listed", errno == ENOENT ? ESRCH : errno);
    std::vector<int> numbers;
    while (dirent* entry = readdir(dir.get()))
        if (auto number = to_number<int>(entry->d_name))
            numbers.push_back(*number);
    return numbers;
}

Result<std::vector<int>> list_numbers(pid_t pid, std::string_view folder) {
    return list_numbers(fmt::format("/proc/{}/{}", pid, folder));
}

}  // namespace

Result<ProcLimits> parse_limits(std::string_view text) {
    ProcLimits limits;
    unsigned found = 0;
    while (auto line = next_line(text)) {
        for (size_t i = 0; i < limits.size(); ++i) {
            if (!line->starts_with(kLimitNames[i]))
                continue;
            std::string_view rest = line->substr(kLimitNames[i].size());
            auto soft = limit_value(rest);
            auto hard = limit_value(rest);
            if (!soft || !hard)
                return tl::unexpected(bad("/proc/PID/limits", *line));
            limits[i] = {*soft, *hard};
            ++found;
        }
    }
    if (found != limits.size())
        return tl::unexpected(bad("/proc/PID/limits", "a limit is missing"));
    return limits;
}

Result<ProcLimits> read_limits(pid_t pid) {
    CKPT_ASSIGN(std::string text, read_proc(pid, "limits"));
    return parse_limits(text);
}

Result<std::vector<uint64_t>> parse_auxv(std::string_view bytes) {
    if (bytes.size() % (2 * sizeof(uint64_t)) != 0)
        return fail(ErrorKind::kInternal, "/proc/PID/auxv", "not a list of pairs");
    std::vector<uint64_t> words(bytes.size() / sizeof(uint64_t));
    std::memcpy(words.data(), bytes.data(), bytes.size());
    return words;
}

Result<std::vector<uint64_t>> read_auxv(pid_t pid) {
    CKPT_ASSIGN(std::string bytes, read_proc(pid, "auxv"));
    return parse_auxv(bytes);
}

Result<std::vector<ProcTimer>> parse_timers(std::string_view text) {
    std::vector<ProcTimer> timers;
    while (auto line = next_line(text)) {
        size_t colon = line->find(':');
        if (colon == line->npos || !parse_timer_line(line->substr(0, colon),
                                                     trim(line->substr(colon + 1)), timers))
            return tl::unexpected(bad("/proc/PID/timers", *line));
    }
    return timers;
}

Result<std::vector<ProcTimer>> read_timers(pid_t pid) {
    CKPT_ASSIGN(std::string text, read_proc(pid, "timers"));
    return parse_timers(text);
}

Result<TimeOffsets> parse_time_offsets(std::string_view text) {
    constexpr int64_t kSecond = 1000000000;
    TimeOffsets offsets;
    while (auto line = next_line(text)) {
        std::string_view rest = *line;
        auto clock = next_word(rest);
        auto seconds = next_number<int64_t>(rest);
        auto nanoseconds = next_number<int64_t>(rest);
        if (!clock || !seconds || !nanoseconds)
            return tl::unexpected(bad("/proc/PID/timens_offsets", *line));
        int64_t value = *seconds * kSecond + *nanoseconds;
        if (*clock == "monotonic" || *clock == "1")  // numbers before Linux 5.8
            offsets.monotonic = value;
        if (*clock == "boottime" || *clock == "7")
            offsets.boottime = value;
    }
    return offsets;
}

Result<TimeOffsets> read_time_offsets(pid_t pid) {
    auto text = read_proc(pid, "timens_offsets");
    if (!text && text.error().errno_code == ENOENT)
        return TimeOffsets{};
    if (!text)
        return tl::unexpected(std::move(text).error());
    return parse_time_offsets(*text);
}

std::optional<std::string> parse_cgroup2_path(std::string_view text) {
    constexpr std::string_view kUnified = "0::";
    while (auto line = next_line(text))
        if (line->starts_with(kUnified))
            return std::string(line->substr(kUnified.size()));
    return std::nullopt;
}

Result<std::optional<std::string>> read_cgroup2_path(pid_t pid) {
    CKPT_ASSIGN(std::string text, read_proc(pid, "cgroup"));
    return parse_cgroup2_path(text);
}

Result<std::vector<int>> read_descriptor_list(pid_t pid) {
    CKPT_ASSIGN(std::vector<int> numbers, list_numbers(pid, "fd"));
    std::sort(numbers.begin(), numbers.end());
    return numbers;
}

Result<std::vector<pid_t>> read_process_list() { return list_numbers("/proc"); }

Result<std::vector<pid_t>> read_task_list(pid_t pid) {
    CKPT_ASSIGN(std::vector<pid_t> tids, list_numbers(pid, "task"));
    std::sort(tids.begin(), tids.end(), [pid](pid_t a, pid_t b) {
        return (a == pid) != (b == pid) ? a == pid : a < b;
    });
    return tids;
}

Result<std::vector<pid_t>> read_children(pid_t pid) {
    CKPT_ASSIGN(std::vector<pid_t> tids, read_task_list(pid));
    std::vector<pid_t> children;
    for (pid_t tid : tids) {
        auto text = read_proc(pid, fmt::format("task/{}/children", tid));
        if (!text && tid != pid && text.error().errno_code == ENOENT)
            continue;  // the thread has ended since
        if (!text)
            return tl::unexpected(std::move(text).error());
        std::string_view rest = *text;
        while (auto child = next_number<int32_t>(rest))
            children.push_back(*child);
    }
    return children;
}

Result<uint64_t> read_namespace_id(pid_t pid, const std::string& name) {
    std::string path = fmt::format("/proc/{}/ns/{}", pid, name);
    auto link = read_link(AT_FDCWD, path);
    if (!link && link.error().errno_code == ENOENT)
        return 0;
    if (!link)
        return tl::unexpected(std::move(link).error());
    size_t open = link->find('[');
    auto id = open == link->npos
                  ? std::nullopt
                  : to_number<uint64_t>(std::string_view(*link).substr(open + 1, link->size() - open - 2));
    if (!id)
        return tl::unexpected(bad(path, *link));
    return *id;
}

}  // namespace checkpointd
