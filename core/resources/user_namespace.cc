// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/resources/user_namespace.h"

#include <fcntl.h>
#include <unistd.h>
#include <sstream>

#include <fmt/core.h>

#include "core/base/io.h"
#include "core/kernel/proc_task.h"

namespace checkpointd {
namespace {

using Extents = google::protobuf::RepeatedPtrField<images::uid_gid_extent>;

Result<void> parse_map(const std::string& text, Extents& out) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        std::istringstream words(line);
        uint32_t first = 0, lower = 0, count = 0;
        if (!(words >> first >> lower >> count))
            return fail(ErrorKind::kInternal, "user namespace",
                        fmt::format("its map says '{}'", line));
        images::uid_gid_extent& extent = *out.Add();
        extent.set_first(first);
        extent.set_lower_first(lower);
        extent.set_count(count);
    }
    return {};
}

std::string print(const Extents& map) {
    std::string text;
    for (const images::uid_gid_extent& extent : map)
        text += fmt::format("{}{} is {}", text.empty() ? "" : ", ", extent.first(),
                            extent.lower_first()) +
                (extent.count() > 1 ? fmt::format(" ({} ids)", extent.count()) : "");
    return text;
}

Result<void> check_maps(const char* what, const Extents& image, const Extents& target) {
    if (print(image) == print(target))
        return {};
    return fail(ErrorKind::kConflict, "user namespace",
                fmt::format("its {} were mapped otherwise at the checkpoint: {}; now {}", what,
                            print(image), print(target)),
                "the unit's User= and Group= must be the same as then");
}

}  // namespace

Result<images::userns_entry> parse_user_namespace(const std::string& uid_map,
                                                  const std::string& gid_map) {
    images::userns_entry entry;
    CKPT_TRY(parse_map(uid_map, *entry.mutable_uid_map()));
    CKPT_TRY(parse_map(gid_map, *entry.mutable_gid_map()));
    return entry;
}

Result<UserNamespace> read_user_namespace(pid_t pid) {
    CKPT_ASSIGN(uint64_t theirs, read_namespace_id(pid, "user"));
    CKPT_ASSIGN(uint64_t ours, read_namespace_id(getpid(), "user"));
    if (theirs == ours)
        return UserNamespace{};
    CKPT_ASSIGN(std::string uids, read_file(AT_FDCWD, fmt::format("/proc/{}/uid_map", pid)));
    CKPT_ASSIGN(std::string gids, read_file(AT_FDCWD, fmt::format("/proc/{}/gid_map", pid)));
    CKPT_ASSIGN(images::userns_entry entry, parse_user_namespace(uids, gids));
    return UserNamespace{std::move(entry)};
}

Result<void> check_user_namespaces(const UserNamespace& image, const UserNamespace& target) {
    if (!image && !target)
        return {};
    if (!image)
        return fail(ErrorKind::kConflict, "user namespace",
                    "the processes had none of their own at the checkpoint, and would get one now",
                    "switch PrivateUsers= off, as it was");
    // Their capabilities were good for nothing outside of it.
    if (!target)
        return fail(ErrorKind::kConflict, "user namespace",
                    "the processes had one of their own at the checkpoint, and there is none now",
                    "switch PrivateUsers= on, as it was");
    CKPT_TRY(check_maps("users", image->uid_map(), target->uid_map()));
    return check_maps("groups", image->gid_map(), target->gid_map());
}

}  // namespace checkpointd
