// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/proc_mount.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <unistd.h>
#include <algorithm>

#include "core/kernel/proc_text.h"

namespace checkpointd {
namespace {

constexpr std::string_view kProc = "/proc";

struct MountLine {
    std::string_view id, parent, root, point, attributes, type, options;
};

// 29 23 0:26 / /proc rw,nosuid shared:9 - proc proc rw,hidepid=invisible (proc_pid_mountinfo(5))
std::optional<MountLine> parse_line(std::string_view line) {
    MountLine mount;
    auto word = [&line] { return next_word(line).value_or(std::string_view()); };
    mount.id = word();
    mount.parent = word();
    word();
    mount.root = word();
    mount.point = word();
    mount.attributes = word();
    for (auto tag = word(); tag != "-"; tag = word())
        if (tag.empty())
            return std::nullopt;
    mount.type = word();
    word();
    mount.options = word();
    return mount;
}

template <typename Each>
void for_each_option(std::string_view list, Each each) {
    while (!list.empty()) {
        size_t end = std::min(list.find(','), list.size());
        each(list.substr(0, end));
        list.remove_prefix(std::min(end + 1, list.size()));
    }
}

uint64_t attributes_of(std::string_view list) {
    constexpr std::pair<std::string_view, uint64_t> kNames[] = {
        {"ro", MOUNT_ATTR_RDONLY},     {"nosuid", MOUNT_ATTR_NOSUID}, {"nodev", MOUNT_ATTR_NODEV},
        {"noexec", MOUNT_ATTR_NOEXEC}, {"noatime", MOUNT_ATTR_NOATIME}};
    uint64_t attributes = 0;
    for_each_option(list, [&](std::string_view option) {
        for (const auto& [name, bit] : kNames)
            attributes |= option == name ? bit : 0;
    });
    return attributes;
}

std::vector<std::pair<std::string, std::string>> options_of(std::string_view list) {
    std::vector<std::pair<std::string, std::string>> options;
    for_each_option(list, [&](std::string_view option) {
        const size_t equals = std::min(option.find('='), option.size());
        const std::string_view key = option.substr(0, equals);
        if (key == "hidepid" || key == "gid" || key == "subset")
            options.emplace_back(key, option.substr(std::min(equals + 1, option.size())));
    });
    return options;
}

// Mounts at one place lie over each other: seen is the one on which none of the others lies.
const MountLine* uppermost(const std::vector<MountLine>& mounts) {
    for (const MountLine& mount : mounts) {
        auto covers = [&](const MountLine& other) {
            return other.point == kProc && other.parent == mount.id;
        };
        if (mount.point == kProc && std::none_of(mounts.begin(), mounts.end(), covers))
            return &mount;
    }
    return nullptr;
}

}  // namespace

std::optional<ProcMount> parse_proc_mount(std::string_view mountinfo) {
    std::vector<MountLine> mounts;
    while (auto line = next_line(mountinfo))
        if (auto mount = parse_line(*line))
            mounts.push_back(*mount);
    const MountLine* seen = uppermost(mounts);
    if (seen == nullptr || seen->type != "proc" || seen->root != "/")
        return std::nullopt;
    ProcMount found{attributes_of(seen->attributes), options_of(seen->options), {}};
    for (const MountLine& mount : mounts)
        if (mount.parent == seen->id)
            found.below.emplace_back(mount.point);
    return found;
}

ProcMounter::ProcMounter(ProcMount like) : like_(std::move(like)), copies_(like_.below.size(), -1) {}

bool ProcMounter::copy_those_below() {
    constexpr unsigned kFlags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE | AT_NO_AUTOMOUNT;
    for (size_t i = 0; i < copies_.size(); ++i) {
        copies_[i] = open_tree(AT_FDCWD, like_.below[i].c_str(), kFlags);
        if (copies_[i] < 0)
            return false;
    }
    return true;
}

int ProcMounter::make() const {
    int context = fsopen("proc", FSOPEN_CLOEXEC);
    if (context < 0)
        return -1;
    for (const auto& [key, value] : like_.options)
        if (fsconfig(context, FSCONFIG_SET_STRING, key.c_str(), value.c_str(), 0) != 0)
            return -1;
    if (fsconfig(context, FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0)
        return -1;
    return fsmount(context, FSMOUNT_CLOEXEC, static_cast<unsigned>(like_.attributes));
}

bool ProcMounter::mount() {
    if (!copy_those_below())
        return false;
    int fresh = make();
    if (fresh < 0 || move_mount(fresh, "", AT_FDCWD, "/proc", MOVE_MOUNT_F_EMPTY_PATH) != 0)
        return false;
    for (size_t i = 0; i < copies_.size(); ++i)
        if (move_mount(copies_[i], "", AT_FDCWD, like_.below[i].c_str(), MOVE_MOUNT_F_EMPTY_PATH) != 0)
            return false;
    return true;
}

}  // namespace checkpointd
