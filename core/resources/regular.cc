// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/resources/regular.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/major.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <fmt/core.h>

#include "core/resources/ghost.h"
#include "core/resources/open_file.h"

namespace checkpointd {

namespace {

constexpr std::string_view kDeleted = " (deleted)";
constexpr unsigned kTmpfileBit = 020000000;  // __O_TMPFILE, what O_TMPFILE adds to O_DIRECTORY

// drivers/char/mem.c: null, zero, full, random, urandom. They have no state.
bool is_harmless_device(const struct stat& st) {
    if (!S_ISCHR(st.st_mode) || major(st.st_rdev) != MEM_MAJOR)
        return false;
    unsigned number = minor(st.st_rdev);
    return number == 3 || number == 5 || number == 7 || number == 8 || number == 9;
}

bool is_openable_type(const struct stat& st) {
    return S_ISREG(st.st_mode) || S_ISDIR(st.st_mode) || S_ISLNK(st.st_mode);
}

bool recognise(const OpenFile& file) {
    if (file.link.empty() || file.link[0] != '/')
        return false;
    // O_PATH of anything is but a place in the file tree.
    return is_openable_type(file.st) || is_harmless_device(file.st) || (file.flags & O_PATH) != 0;
}

bool same_file(const struct stat& a, const struct stat& b) {
    // A private /dev has nodes of its own for the same device: the device is what counts.
    if (is_harmless_device(a))
        return is_harmless_device(b) && a.st_rdev == b.st_rdev;
    return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

// What the task's mount namespace has at a path; errno otherwise. Magic links are not followed:
// link texts never name one.
int stat_in(const NamespaceRoot& root, std::string_view path, struct stat& st) {
    if (root.fd < 0)
        return ENOENT;
    if (!root.prefix.empty()) {
        if (!path.starts_with(root.prefix))
            return ENOENT;
        path.remove_prefix(root.prefix.size());
    }
    while (path.starts_with('/'))
        path.remove_prefix(1);
    const std::string relative = path.empty() ? "." : std::string(path);
    return fstatat(root.fd, relative.c_str(), &st, AT_SYMLINK_NOFOLLOW) == 0 ? 0 : errno;
}

Error path_blocker(const OpenFile& file, std::string message) {
    return Error{ErrorKind::kUnsupported, file.object, std::move(message),
                 fmt::format("let the program reopen it, or declare it external as {}", external_key(file)),
                 0, {}};
}

std::string without_deleted(const std::string& link) {
    return link.ends_with(kDeleted) ? link.substr(0, link.size() - kDeleted.size()) : link;
}

Result<void> dump(const OpenFile& file, FileDumpContext& context, images::file_entry& entry) {
    images::reg_file_entry& reg = *entry.mutable_reg();
    reg.set_id(entry.id());
    reg.set_flags(file.flags);
    reg.set_pos(file.flags & O_PATH ? 0 : file.pos);
    reg.set_mode(file.st.st_mode);
    put_owner(file, *reg.mutable_fown());
    // A log that is only appended to may have grown until the restore.
    bool grows = (file.flags & O_ACCMODE) == O_WRONLY && (file.flags & O_APPEND);
    if (S_ISREG(file.st.st_mode) && !grows)
        reg.set_size(static_cast<uint64_t>(file.st.st_size));
    return dump_path(file, context, reg);
}

// The PID of "/proc/PID/..." where that process is one of those that are restored.
std::optional<pid_t> proc_owner(const std::string& name, const FilePlanContext& context) {
    constexpr std::string_view proc = "/proc/";
    if (!name.starts_with(proc))
        return std::nullopt;
    auto pid = parse_number(std::string_view(name).substr(proc.size(),
                                                          name.find('/', proc.size()) - proc.size()),
                            10);
    if (!pid || !context.has_task(static_cast<pid_t>(*pid)))
        return std::nullopt;
    return static_cast<pid_t>(*pid);
}

unsigned open_flags(const images::reg_file_entry& reg) {
    unsigned flags = reg.flags() & ~static_cast<unsigned>(O_CREAT | O_EXCL | O_TRUNC | O_ASYNC);
    if (flags & kTmpfileBit)
        flags &= ~static_cast<unsigned>(O_TMPFILE);
    if ((flags & O_PATH) && S_ISLNK(reg.mode()))
        flags |= O_NOFOLLOW;
    return flags | O_NOCTTY;
}

// The size is compared by seeking to the end, which costs one operation and needs no memory.
void check_size(const images::reg_file_entry& reg, Program& agent, std::string_view label, Slot fd) {
    // What the kernel makes up as it is read has no size, and often no end to seek to.
    bool made_up = reg.name().starts_with("/proc/") || reg.name().starts_with("/sys/");
    bool may_change = made_up || (reg.flags() & O_ACCMODE) == O_WRONLY ||
                      (reg.flags() & O_APPEND) != 0;
    if (reg.has_size() && !may_change && !(reg.flags() & O_PATH))
        agent.call_expect(fmt::format("{}: size as it was ({} bytes)", label, reg.size()),
                          static_cast<int64_t>(reg.size()), SYS_lseek, {fd, 0, SEEK_END});
}

void seek(const images::reg_file_entry& reg, Program& agent, std::string_view label, Slot fd) {
    bool seekable = !(reg.flags() & O_PATH) && !S_ISCHR(reg.mode()) && reg.pos() != UINT64_MAX;
    if (seekable && (reg.pos() != 0 || reg.has_size()))
        agent.call(label, SYS_lseek, {fd, reg.pos(), SEEK_SET});
}

Result<std::optional<Slot>> plan_external(const images::reg_file_entry& reg,
                                          FilePlanContext& context) {
    if (auto slot = context.external(reg.name()))
        return slot;
    return fail(ErrorKind::kNotFound, reg.name(), "the caller has to provide this file, and did not",
                "give a descriptor for this key");
}

Result<std::optional<Slot>> plan(const images::file_entry& entry, FilePlanContext& context) {
    const images::reg_file_entry& reg = entry.reg();
    if (reg.ext())
        return plan_external(reg, context);
    if (reg.name().empty() || reg.name()[0] != '/')
        return fail(ErrorKind::kBadImage, fmt::format("file {}", entry.id()), "path is not absolute");
    const std::string label = fmt::format("file {} ({})", entry.id(), reg.name());
    const unsigned flags = open_flags(reg);
    Program& agent = context.agent();
    if (const uint32_t* ghost = find_ghost(context.images(), entry.id())) {
        CKPT_ASSIGN(Slot inode, plan_ghost(*ghost, reg.name(), context));
        Slot slot = context.reopen(agent, label, inode, flags);
        seek(reg, agent, label, slot);
        context.settle(label, slot, entry.id(), reg.flags(), reg.fown());
        return slot;
    }
    if (proc_owner(reg.name(), context)) {
        const ArenaRef path = context.plan().string(reg.name());
        context.install_late(entry.id(), [=](Program& late) {
            return late.value(label, SYS_openat, {AT_FDCWD, path, flags | O_CLOEXEC});
        });
        return std::nullopt;
    }
    Slot slot = agent.descriptor(label, SYS_openat,
                                 {AT_FDCWD, context.plan().string(reg.name()), flags | O_CLOEXEC});
    check_size(reg, agent, label, slot);
    seek(reg, agent, label, slot);
    context.settle(label, slot, entry.id(), reg.flags(), reg.fown());
    return slot;
}

}  // namespace

std::string external_key(const OpenFile& file) {
    return fmt::format("file[{:x}:{:x}]", static_cast<unsigned>(file.mnt_id), file.st.st_ino);
}

Result<void> dump_path(const OpenFile& file, FileDumpContext& context, images::reg_file_entry& reg) {
    const std::string key = external_key(file);
    if (context.is_external(key)) {
        reg.set_name(key);
        reg.set_ext(true);
        return {};
    }
    reg.set_name(file.link);
    struct stat there {};
    const NamespaceRoot root = context.namespace_root(file.pid);
    if (stat_in(root, file.link, there) == 0 && same_file(file.st, there))
        return {};
    const std::string name = without_deleted(file.link);
    if (file.filesystem() == PROC_SUPER_MAGIC) {
        context.blocker(path_blocker(file, "the process or entry of /proc behind it is gone"));
        return {};
    }
    if (file.st.st_nlink == 0 || (S_ISDIR(file.st.st_mode) && file.link.ends_with(kDeleted))) {
        reg.set_name(name);
        return dump_ghost(file, context, reg.id());
    }
    context.blocker(path_blocker(
        file, file.link.ends_with(kDeleted)
                  ? "its name was removed, but the file has another one that cannot be found"
                  : "this path leads to another file or nowhere in the task's mount namespace"));
    return {};
}

const images::file_entry* find_file(const FileImages& images, uint32_t file_id) {
    for (const images::file_entry& entry : images.files)
        if (entry.id() == file_id)
            return &entry;
    return nullptr;
}

const uint32_t* find_ghost(const FileImages& images, uint32_t file_id) {
    auto found = images.ghost_of.find(file_id);
    return found == images.ghost_of.end() ? nullptr : &found->second;
}

const FileKind kRegularKind{images::REG, "file", recognise, dump, plan};

}  // namespace checkpointd
