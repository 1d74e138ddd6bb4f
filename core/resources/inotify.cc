// SPDX-License-Identifier: LGPL-2.1-or-later
#include <algorithm>
#include <cstring>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fmt/core.h>

#include "core/base/io.h"
#include "core/resources/kinds.h"
#include "core/resources/open_file.h"

namespace checkpointd {

namespace {

constexpr unsigned long kSetNextWatch = _IOW('I', 0, int32_t);  // INOTIFY_IOC_SETNEXTWD
// fs/notify/inotify: what fdinfo shows beyond what inotify_add_watch accepts.
constexpr uint32_t kAcceptedMask = IN_ALL_EVENTS | IN_ONLYDIR | IN_DONT_FOLLOW | IN_EXCL_UNLINK |
                                   IN_ONESHOT;

bool recognise(const OpenFile& file) {
    return file.is_anon("inotify");
}

// The words of a handle, sixteen at least, as the format wants them.
bool parse_handle(std::string_view hex, images::fh_entry& handle) {
    std::string bytes;
    for (size_t i = 0; i + 1 < hex.size(); i += 2) {
        auto byte = parse_number(hex.substr(i, 2), 16);
        if (!byte)
            return false;
        bytes.push_back(static_cast<char>(*byte));
    }
    bytes.resize(std::max<size_t>((bytes.size() + 7) / 8, images::min_entries) * 8);
    for (size_t i = 0; i < bytes.size(); i += 8) {
        uint64_t word = 0;
        std::memcpy(&word, bytes.data() + i, 8);
        handle.add_handle(word);
    }
    return true;
}

bool parse_watch(std::string_view line, images::inotify_wd_entry& watch) {
    auto number = [&](std::string_view key, int base) -> std::optional<uint64_t> {
        auto text = line_field(line, key);
        return text ? parse_number(*text, base) : std::nullopt;
    };
    auto wd = number("wd", 16);
    auto ino = number("ino", 16);
    auto dev = number("sdev", 16);
    auto mask = number("mask", 16);
    auto bytes = number("fhandle-bytes", 16);
    auto type = number("fhandle-type", 16);
    auto handle = line_field(line, "f_handle");
    if (!wd || !ino || !dev || !mask)
        return false;
    watch.set_wd(static_cast<uint32_t>(*wd));
    watch.set_i_ino(*ino);
    watch.set_s_dev(static_cast<uint32_t>(*dev));
    watch.set_mask(static_cast<uint32_t>(*mask));
    watch.set_ignored_mask(0);
    images::fh_entry& fh = *watch.mutable_f_handle();
    fh.set_bytes(static_cast<uint32_t>(bytes.value_or(0)));
    fh.set_type(static_cast<uint32_t>(type.value_or(0)));
    return parse_handle(handle.value_or(std::string_view{}), fh);
}

// Opens the watched inode by its handle on any mount of its filesystem that the task sees, and reads
// where it is. Nothing where the filesystem has no handles or the inode no name.
std::optional<std::string> path_of(const images::inotify_wd_entry& watch, const OpenFile& file,
                                   FileDumpContext& context) {
    alignas(file_handle) char space[sizeof(file_handle) + MAX_HANDLE_SZ] = {};
    auto* handle = reinterpret_cast<file_handle*>(space);
    const images::fh_entry& fh = watch.f_handle();
    if (fh.bytes() == 0 || fh.bytes() > MAX_HANDLE_SZ)
        return std::nullopt;
    handle->handle_bytes = fh.bytes();
    handle->handle_type = static_cast<int>(fh.type());
    for (int i = 0; i < fh.handle_size() && (i + 1) * 8 <= MAX_HANDLE_SZ; ++i) {
        uint64_t word = fh.handle(i);
        std::memcpy(handle->f_handle + static_cast<size_t>(i) * 8, &word, 8);
    }
    for (int mount : context.mounts_of(file.pid, watch.s_dev())) {
        ScopedFd opened(open_by_handle_at(mount, handle, O_PATH | O_CLOEXEC));
        struct stat st {};
        if (!opened || fstat(opened.get(), &st) != 0 || st.st_ino != watch.i_ino())
            continue;
        auto path = read_link(AT_FDCWD, fmt::format("/proc/self/fd/{}", opened.get()));
        if (path && path->starts_with('/') && !path->ends_with(" (deleted)"))
            return *path;
    }
    return std::nullopt;
}

Result<void> dump(const OpenFile& file, FileDumpContext& context, images::file_entry& entry) {
    images::inotify_file_entry& record = *entry.mutable_ify();
    record.set_id(entry.id());
    record.set_flags(file.flags);
    put_owner(file, *record.mutable_fown());
    int waiting = 0;
    if (ioctl(file.copy, FIONREAD, &waiting) == 0 && waiting > 0)
        context.blocker(Error{ErrorKind::kUnsupported, file.object,
                              "inotify events wait to be read, and cannot be carried",
                              "try again when the program has read them", 0, {}});
    for_each_line(file.fdinfo, [&](std::string_view line) {
        if (!line.starts_with("inotify "))
            return;
        images::inotify_wd_entry watch;
        auto path = parse_watch(line, watch) ? path_of(watch, file, context) : std::nullopt;
        if (!path) {
            context.blocker(Error{ErrorKind::kUnsupported, file.object,
                                  fmt::format("cannot find the path of an inotify watch ({})", line),
                                  "let the program remove this watch", 0, {}});
            return;
        }
        watch.set_id(entry.id());
        watch.mutable_f_handle()->set_path(*path);
        *record.add_wd() = watch;
    });
    return {};
}

Result<void> plan_watch(const images::inotify_wd_entry& watch, std::string_view label, Slot slot,
                        FilePlanContext& context) {
    if (!watch.f_handle().has_path())
        return fail(ErrorKind::kUnsupported, fmt::format("{}: watch {}", label, watch.wd()),
                    "the image has a file handle but no path for it");
    const std::string name = fmt::format("{}: watch {} ({})", label, watch.wd(), watch.f_handle().path());
    const ArenaRef path = context.plan().string(watch.f_handle().path());
    // After everything else is open, or the opening would be seen.
    context.when_opened([=, number = watch.wd(), mask = watch.mask() & kAcceptedMask](Program& agent) {
        agent.call(name, SYS_ioctl, {slot, kSetNextWatch, number});
        agent.call_expect(name, number, SYS_inotify_add_watch, {slot, path, mask});
    });
    return {};
}

Result<std::optional<Slot>> plan(const images::file_entry& entry, FilePlanContext& context) {
    const images::inotify_file_entry& record = entry.ify();
    const std::string label = fmt::format("inotify {}", entry.id());
    Slot slot = context.agent().descriptor(label, SYS_inotify_init1, {IN_CLOEXEC});
    for (const images::inotify_wd_entry& watch : record.wd())
        CKPT_TRY(plan_watch(watch, label, slot, context));
    context.settle(label, slot, entry.id(), record.flags(), record.fown());
    return slot;
}

}  // namespace

const FileKind kInotifyKind{images::INOTIFY, "inotify", recognise, dump, plan};

}  // namespace checkpointd
