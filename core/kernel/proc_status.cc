// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/kernel/proc_status.h"

#include <algorithm>
#include <fcntl.h>
#include <functional>
#include <map>

#include "core/base/io.h"
#include "core/kernel/proc_text.h"

namespace checkpointd {
namespace {

template <typename T>
bool store(std::string_view text, T& out, int base = 10) {
    auto value = next_number<T>(text, base);
    if (value)
        out = *value;
    return value.has_value();
}

template <typename T>
bool store_list(std::string_view text, std::vector<T>& out) {
    out.clear();
    while (auto word = next_word(text)) {
        auto value = to_number<T>(*word);
        if (!value)
            return false;
        out.push_back(*value);
    }
    return true;
}

bool store_four(std::string_view text, std::array<uint32_t, 4>& out) {
    std::vector<uint32_t> values;
    if (!store_list(text, values) || values.size() != out.size())
        return false;
    std::copy(values.begin(), values.end(), out.begin());
    return true;
}

// fs/proc/array.c escapes newline and backslash in the name (seq_escape_str).
std::string unescape(std::string_view text) {
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] == '\\' && i + 1 < text.size()) {
            ++i;
            out += text[i] == 'n' ? '\n' : text[i];
        } else {
            out += text[i];
        }
    }
    return out;
}

bool store_flag(std::string_view text, bool& out) {
    unsigned value = 0;
    if (!store<uint32_t>(text, value))
        return false;
    out = value != 0;
    return true;
}

using Setter = bool (*)(std::string_view, ProcStatus&);

Setter setter_of(std::string_view key) {
    static const std::map<std::string_view, Setter> setters = {
        {"Umask", [](auto v, auto& s) { return store(v, s.umask, 8); }},
        {"State",
         [](auto v, auto& s) {
             s.state = v.empty() ? '?' : v.front();
             return !v.empty();
         }},
        {"Tgid", [](auto v, auto& s) { return store(v, s.tgid); }},
        {"Pid", [](auto v, auto& s) { return store(v, s.pid); }},
        {"PPid", [](auto v, auto& s) { return store(v, s.ppid); }},
        {"TracerPid", [](auto v, auto& s) { return store(v, s.tracer_pid); }},
        {"Uid", [](auto v, auto& s) { return store_four(v, s.uids); }},
        {"Gid", [](auto v, auto& s) { return store_four(v, s.gids); }},
        {"Groups", [](auto v, auto& s) { return store_list(v, s.groups); }},
        {"NSpid", [](auto v, auto& s) { return store_list(v, s.ns_pids); }},
        {"NSpgid", [](auto v, auto& s) { return store_list(v, s.ns_pgids); }},
        {"NSsid", [](auto v, auto& s) { return store_list(v, s.ns_sids); }},
        {"Kthread", [](auto v, auto& s) { return store_flag(v, s.kernel_thread); }},
        {"Threads", [](auto v, auto& s) { return store(v, s.threads); }},
        {"SigPnd", [](auto v, auto& s) { return store(v, s.sig_pending, 16); }},
        {"ShdPnd", [](auto v, auto& s) { return store(v, s.shared_sig_pending, 16); }},
        {"SigBlk", [](auto v, auto& s) { return store(v, s.sig_blocked, 16); }},
        {"SigIgn", [](auto v, auto& s) { return store(v, s.sig_ignored, 16); }},
        {"SigCgt", [](auto v, auto& s) { return store(v, s.sig_caught, 16); }},
        {"CapInh", [](auto v, auto& s) { return store(v, s.cap_inheritable, 16); }},
        {"CapPrm", [](auto v, auto& s) { return store(v, s.cap_permitted, 16); }},
        {"CapEff", [](auto v, auto& s) { return store(v, s.cap_effective, 16); }},
        {"CapBnd", [](auto v, auto& s) { return store(v, s.cap_bounding, 16); }},
        {"CapAmb", [](auto v, auto& s) { return store(v, s.cap_ambient, 16); }},
        {"NoNewPrivs", [](auto v, auto& s) { return store_flag(v, s.no_new_privs); }},
        {"Seccomp", [](auto v, auto& s) { return store(v, s.seccomp_mode); }},
    };
    auto found = setters.find(key);
    return found == setters.end() ? nullptr : found->second;
}

}  // namespace

Result<ProcStatus> parse_status(std::string_view text) {
    ProcStatus status;
    while (auto line = next_line(text)) {
        size_t colon = line->find(':');
        if (colon == line->npos)
            return fail(ErrorKind::kInternal, "/proc/PID/status", "a line without a colon");
        std::string_view key = line->substr(0, colon);
        std::string_view value = line->substr(colon + 1);
        if (key == "Name") {  // one tab, then the name, blanks at its ends included
            status.name = unescape(value.substr(value.empty() ? 0 : 1));
            continue;
        }
        Setter set = setter_of(key);
        if (set && !set(trim(value), status))
            return fail(ErrorKind::kInternal, "/proc/PID/status",
                        fmt::format("cannot parse {}: '{}'", key, value));
    }
    if (status.pid == 0)
        return fail(ErrorKind::kInternal, "/proc/PID/status", "no Pid line");
    return status;
}

Result<ProcStatus> read_status(pid_t pid) {
    CKPT_ASSIGN(std::string text, read_file(AT_FDCWD, fmt::format("/proc/{}/status", pid)));
    return parse_status(text);
}

Result<ProcStatus> read_thread_status(pid_t pid, pid_t tid) {
    CKPT_ASSIGN(std::string text,
                read_file(AT_FDCWD, fmt::format("/proc/{}/task/{}/status", pid, tid)));
    return parse_status(text);
}

pid_t innermost_pid(pid_t pid) {
    auto status = read_status(pid);
    return status && !status->ns_pids.empty() ? status->ns_pids.back() : pid;
}

}  // namespace checkpointd
