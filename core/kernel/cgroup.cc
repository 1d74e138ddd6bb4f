// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/kernel/cgroup.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <dirent.h>
#include <fcntl.h>
#include <fmt/core.h>
#include <memory>
#include <poll.h>
#include <thread>
#include <unistd.h>

#include "core/base/io.h"
#include "core/kernel/proc_task.h"

namespace checkpointd {
namespace {

using Clock = std::chrono::steady_clock;

// Calls `visit` with every line, without its newline.
template <typename Visit>
void for_each_line(std::string_view text, Visit visit) {
    while (!text.empty()) {
        size_t end = text.find('\n');
        visit(text.substr(0, end));
        text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    }
}

std::vector<std::string_view> split_words(std::string_view line) {
    std::vector<std::string_view> words;
    while (!line.empty()) {
        size_t end = line.find(' ');
        if (end != 0)
            words.push_back(line.substr(0, end));
        line.remove_prefix(end == std::string_view::npos ? line.size() : end + 1);
    }
    return words;
}

Result<std::vector<std::string>> subdirectories(const std::string& path) {
    std::unique_ptr<DIR, int (*)(DIR*)> dir(opendir(path.c_str()), closedir);
    if (!dir)
        return fail_errno(path, "cannot list the cgroup");
    std::vector<std::string> names;
    while (const dirent* entry = readdir(dir.get())) {
        std::string_view name = entry->d_name;
        if (entry->d_type == DT_DIR && name != "." && name != "..")
            names.push_back(path + "/" + std::string(name));
    }
    return names;
}

void append_ids(std::string_view text, std::vector<pid_t>& out) {
    for_each_line(text, [&](std::string_view line) {
        pid_t id = 0;
        auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), id);
        // 0 stands for a process outside of our pid namespace; it cannot be addressed from here.
        if (error == std::errc() && id > 0)
            out.push_back(id);
    });
}

// A child cgroup may be removed while we walk; the top one must be there.
Result<void> collect_ids(const std::string& path, const char* file, bool top, std::vector<pid_t>& out) {
    Result<std::string> text = read_file(AT_FDCWD, path + "/" + file);
    if (!text) {
        int code = text.error().errno_code;
        if (!top && (code == ENOENT || code == ENODEV))
            return {};
        // A threaded child answers EOPNOTSUPP to cgroup.procs; its processes are listed by the domain.
        if (code == EOPNOTSUPP)
            return {};
        return tl::unexpected(std::move(text).error());
    }
    append_ids(*text, out);
    Result<std::vector<std::string>> children = subdirectories(path);
    if (!children)
        return top ? Result<void>(tl::unexpected(std::move(children).error())) : Result<void>();
    for (const std::string& child : *children)
        CKPT_TRY(collect_ids(child, file, false, out));
    return {};
}

Result<std::vector<pid_t>> sorted_ids(const std::string& path, const char* file) {
    std::vector<pid_t> ids;
    CKPT_TRY(collect_ids(path, file, true, ids));
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    return ids;
}

Result<void> write_flag(const std::string& file, std::string_view value) {
    CKPT_ASSIGN(ScopedFd fd, open_at(AT_FDCWD, file, O_WRONLY));
    return write_all(fd.get(), value.data(), value.size(), file);
}

// Success also where the cgroup has gone: before its file was opened, or since.
template <typename T>
Result<void> unless_gone(Result<T> result) {
    if (result || result.error().errno_code == ENOENT || result.error().errno_code == ENODEV)
        return {};
    return tl::unexpected(std::move(result).error());
}

bool says_frozen(std::string_view events) { return events.find("frozen 1") != std::string_view::npos; }

// cgroup.events wakes poll(2) with POLLPRI at every change (cgroup-v2.rst, "populated" and "frozen").
Result<void> wait_frozen(const std::string& path, Clock::time_point deadline) {
    std::string file = path + "/cgroup.events";
    CKPT_ASSIGN(ScopedFd fd, open_at(AT_FDCWD, file, O_RDONLY));
    for (;;) {
        if (lseek(fd.get(), 0, SEEK_SET) != 0)
            return fail_errno(file, "cannot rewind");
        CKPT_ASSIGN(std::string events, read_fd(fd.get(), file));
        if (says_frozen(events))
            return {};
        auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
        if (left.count() <= 0)
            return tl::unexpected(Error{ErrorKind::kTimeout, path, "the cgroup does not freeze",
                                        "a task waits in the kernel and cannot be woken; try later",
                                        0, {}});
        pollfd poll_fd{fd.get(), POLLPRI, 0};
        if (poll(&poll_fd, 1, static_cast<int>(std::min<int64_t>(left.count(), 1000))) < 0 &&
            errno != EINTR)
            return fail_errno(file, "cannot wait for a change");
    }
}

}  // namespace

Result<std::string> parse_cgroup2_mount_point(std::string_view mountinfo) {
    std::string found;
    for_each_line(mountinfo, [&](std::string_view line) {
        // 29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw (proc_pid_mountinfo(5))
        std::vector<std::string_view> words = split_words(line);
        auto dash = std::find(words.begin(), words.end(), "-");
        if (found.empty() && words.size() > 5 && words.end() - dash > 1 && dash[1] == "cgroup2" &&
            words[3] == "/")
            found = std::string(words[4]);
    });
    if (found.empty())
        return fail(ErrorKind::kNotFound, "cgroup2", "no cgroup2 tree is mounted",
                    "mount it at /sys/fs/cgroup or /sys/fs/cgroup/unified");
    return found;
}

Result<std::string> cgroup2_mount_point() {
    CKPT_ASSIGN(std::string text, read_file(AT_FDCWD, "/proc/self/mountinfo"));
    return parse_cgroup2_mount_point(text);
}

Result<std::string> cgroup2_of(pid_t pid) {
    CKPT_ASSIGN(std::string top, cgroup2_mount_point());
    CKPT_ASSIGN(std::optional<std::string> path, read_cgroup2_path(pid));
    if (!path)
        return fail(ErrorKind::kNotFound, fmt::format("pid {}", pid), "is in no cgroup2 tree");
    return *path == "/" ? top : top + *path;
}

Result<std::vector<pid_t>> cgroup_processes(const std::string& path) {
    return sorted_ids(path, "cgroup.procs");
}

Result<std::vector<pid_t>> cgroup_threads(const std::string& path) {
    return sorted_ids(path, "cgroup.threads");
}

namespace {

// What is frozen from above stays so when we thaw: nothing injected into it would ever run.
Result<void> check_not_frozen_from_above(const std::string& path) {
    for (std::string above = path; above.rfind('/') != std::string::npos;) {
        above.resize(above.rfind('/'));
        auto flag = read_file(AT_FDCWD, above + "/cgroup.freeze");
        if (!flag)
            return {};  // the root has none, see cgroup-v2.rst
        if (flag->starts_with('1'))
            return fail(ErrorKind::kConflict, path,
                        fmt::format("the cgroup above it is frozen: {}", above),
                        "thaw that one: systemctl thaw SLICE, or write 0 to its cgroup.freeze");
    }
    return {};
}

}  // namespace

Result<CgroupFreeze> CgroupFreeze::freeze(const std::string& path, Clock::time_point deadline) {
    CKPT_ASSIGN(std::string before, read_file(AT_FDCWD, path + "/cgroup.freeze"));
    if (!before.starts_with('1'))
        CKPT_TRY(check_not_frozen_from_above(path));
    CgroupFreeze freeze(path, before.starts_with('1'));
    if (!freeze.was_frozen_)
        CKPT_TRY(write_flag(path + "/cgroup.freeze", "1"));
    CKPT_TRY(wait_frozen(path, deadline));
    return freeze;
}

CgroupFreeze::CgroupFreeze(CgroupFreeze&& other) noexcept { *this = std::move(other); }

CgroupFreeze& CgroupFreeze::operator=(CgroupFreeze&& other) noexcept {
    if (this == &other)
        return *this;
    (void)thaw();
    path_ = std::move(other.path_);
    was_frozen_ = other.was_frozen_;
    active_ = std::exchange(other.active_, false);
    return *this;
}

CgroupFreeze::~CgroupFreeze() { (void)thaw(); }

Result<void> CgroupFreeze::thaw() {
    if (!std::exchange(active_, false) || was_frozen_)
        return {};
    return thaw_cgroup(path_);
}

Result<void> move_to_cgroup(pid_t pid, const std::string& path) {
    return write_flag(path + "/cgroup.procs", std::to_string(pid));
}

Result<void> thaw_cgroup(const std::string& path) {
    return unless_gone(write_flag(path + "/cgroup.freeze", "0"));
}

Result<void> kill_cgroup(const std::string& path, Clock::time_point deadline) {
    CKPT_TRY(unless_gone(write_flag(path + "/cgroup.kill", "1")));
    for (;;) {
        auto left = cgroup_processes(path);
        if (!left || left->empty())
            return unless_gone(std::move(left));
        if (Clock::now() >= deadline)
            return fail(ErrorKind::kTimeout, path,
                        fmt::format("pid {} does not die of SIGKILL", left->front()));
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

}  // namespace checkpointd
