// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/subgroups.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <fcntl.h>
#include <filesystem>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/io.h"
#include "core/base/scoped_fd.h"

namespace checkpointd {
namespace {

namespace fs = std::filesystem;

// systemd's own, for its control processes.
constexpr std::string_view kControlGroup = ".control";
constexpr std::string_view kSubtreeControl = "cgroup.subtree_control";

struct Setting {
    std::string_view file;
    std::string_view initial;  // as the kernel makes it: Documentation/admin-guide/cgroup-v2.rst
};

// Limits before weights is of no matter; what hands controllers down comes last, see configure_subgroups().
constexpr std::array<Setting, 25> kSettings = {{
    {"cgroup.max.descendants", "max"}, {"cgroup.max.depth", "max"},   {"cpu.weight", "100"},
    {"cpu.max", "max 100000"},         {"cpu.max.burst", "0"},        {"cpu.idle", "0"},
    {"cpu.uclamp.min", "0.00"},        {"cpu.uclamp.max", "max"},     {"cpuset.cpus", ""},
    {"cpuset.mems", ""},               {"cpuset.cpus.partition", "member"},
    {"io.weight", "default 100"},      {"io.bfq.weight", "default 100"},
    {"io.max", ""},                    {"io.latency", ""},            {"memory.min", "0"},
    {"memory.low", "0"},               {"memory.high", "max"},        {"memory.max", "max"},
    {"memory.swap.high", "max"},       {"memory.swap.max", "max"},    {"memory.zswap.max", "max"},
    {"memory.zswap.writeback", "1"},   {"memory.oom.group", "0"},     {"pids.max", "max"},
}};

std::string without_line_end(std::string text) {
    while (text.ends_with('\n'))
        text.pop_back();
    return text;
}

// The content of a control file; empty where the kernel has none of that name.
std::string control(const std::string& dir, std::string_view file) {
    return without_line_end(read_file(AT_FDCWD, fmt::format("{}/{}", dir, file)).value_or(""));
}

Result<void> check_group(const std::string& dir, const std::string& path) {
    if (control(dir, "cgroup.type").find("threaded") != std::string::npos)
        return fail(ErrorKind::kUnsupported, fmt::format("cgroup {}", path),
                    "threads of one process in different control groups cannot be carried");
    if (control(dir, "cgroup.freeze") == "1")
        return fail(ErrorKind::kConflict, fmt::format("cgroup {}", path), "it is frozen",
                    "thaw it, or wait until its manager does");
    return {};
}

void read_settings(const std::string& dir, Subgroup& group) {
    for (const Setting& setting : kSettings)
        if (std::string value = control(dir, setting.file); !value.empty() && value != setting.initial)
            group.settings.emplace_back(setting.file, std::move(value));
}

void read_handed_down(const std::string& dir, Subgroup& group) {
    if (std::string controllers = control(dir, kSubtreeControl); !controllers.empty())
        group.settings.emplace_back(kSubtreeControl, enable_all(controllers));
}

Result<Subgroup> read_group(const std::string& dir, std::string path) {
    CKPT_TRY(check_group(dir, path));
    struct stat status;
    if (stat(dir.c_str(), &status) != 0)
        return fail_errno(dir, "cannot examine");
    Subgroup group{std::move(path), status.st_uid, status.st_gid, status.st_mode & 07777u, {}, {}};
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(dir, ignored))
        if (struct stat file; stat(entry.path().c_str(), &file) == 0 && S_ISREG(file.st_mode) &&
                              (file.st_uid != 0 || file.st_gid != 0))
            group.owned.push_back(entry.path().filename());
    std::sort(group.owned.begin(), group.owned.end());
    read_settings(dir, group);
    read_handed_down(dir, group);
    return group;
}

std::vector<std::string> below(const std::string& dir) {
    std::vector<std::string> out;
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(dir, ignored))
        if (entry.is_directory(ignored) && entry.path().filename() != kControlGroup)
            out.push_back(entry.path().filename());
    std::sort(out.begin(), out.end());
    return out;
}

Result<void> read_below(const std::string& top, const std::string& path, std::vector<Subgroup>& out) {
    for (const std::string& name : below(top + path)) {
        const std::string own = fmt::format("{}/{}", path, name);
        CKPT_ASSIGN(Subgroup group, read_group(top + own, own));
        out.push_back(std::move(group));
        CKPT_TRY(read_below(top, own, out));
    }
    return {};
}

// Paths come from an image.
bool stays_inside(std::string_view path) {
    return path.starts_with('/') && fmt::format("{}/", path).find("/../") == std::string::npos;
}

Result<void> give(const std::string& path, const Subgroup& group) {
    if (chown(path.c_str(), group.uid, group.gid) != 0 && errno != ENOENT)
        return fail_errno(path, "cannot give it to its owner");
    return {};
}

// A control file takes one line, that of one device for instance, in one write(2).
Result<void> set_control(const std::string& path, std::string_view value) {
    if (without_line_end(read_file(AT_FDCWD, path).value_or("")) == value)
        return {};
    CKPT_ASSIGN(ScopedFd out, open_at(AT_FDCWD, path, O_WRONLY));
    while (!value.empty()) {
        std::string_view line = value.substr(0, value.find('\n'));
        if (write(out.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size()))
            return fail_errno(path, fmt::format("cannot set it to '{}' again", line));
        value.remove_prefix(std::min(value.size(), line.size() + 1));
    }
    return {};
}

}  // namespace

std::string enable_all(std::string_view controllers) {
    std::string out;
    while (!controllers.empty()) {
        std::string_view word = controllers.substr(0, controllers.find(' '));
        controllers.remove_prefix(std::min(controllers.size(), word.size() + 1));
        if (!word.empty())
            out += fmt::format("{}+{}", out.empty() ? "" : " ", word);
    }
    return out;
}

Result<std::vector<Subgroup>> read_subgroups(const std::string& cgroup_dir) {
    std::vector<Subgroup> out;
    CKPT_TRY(read_below(cgroup_dir, "", out));
    // The rest of the unit's own group is systemd's matter.
    Subgroup own;
    read_handed_down(cgroup_dir, own);
    if (!own.settings.empty())
        out.insert(out.begin(), std::move(own));
    return out;
}

bool hands_controllers_down(const std::vector<Subgroup>& groups) {
    return !groups.empty() && groups.front().path.empty();
}

Result<void> make_subgroups(const std::string& cgroup_dir, const std::vector<Subgroup>& groups) {
    for (const Subgroup& group : groups) {
        if (group.path.empty())
            continue;
        if (!stays_inside(group.path))
            return fail(ErrorKind::kBadImage, group.path, "is no control group of the unit");
        const std::string dir = cgroup_dir + group.path;
        if (mkdir(dir.c_str(), group.mode) != 0 && errno != EEXIST)
            return fail_errno(dir, "cannot make the control group");
        CKPT_TRY(give(dir, group));
        for (const std::string& file : group.owned)
            if (file.find('/') == std::string::npos)
                CKPT_TRY(give(fmt::format("{}/{}", dir, file), group));
    }
    return {};
}

Result<void> configure_subgroups(const std::string& cgroup_dir, const std::vector<Subgroup>& groups) {
    for (const Subgroup& group : groups)
        for (const auto& [file, value] : group.settings) {
            if (file.find('/') != std::string::npos)
                return fail(ErrorKind::kBadImage, file, "is no control file");
            CKPT_TRY(set_control(fmt::format("{}{}/{}", cgroup_dir, group.path, file), value));
        }
    return {};
}

}  // namespace checkpointd
