// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/resources/ghost.h"

#include <algorithm>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fmt/core.h>

#include "images/image_type.h"

namespace checkpointd {

namespace {

// Blocks that hold bytes, as SEEK_DATA tells; no chunks means that the file has no holes.
Result<std::vector<GhostFile::Chunk>> data_chunks(int fd, uint64_t size, const std::string& object) {
    std::vector<GhostFile::Chunk> chunks;
    off_t at = 0;
    while (static_cast<uint64_t>(at) < size) {
        off_t data = lseek(fd, at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            break;
        off_t hole = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);
        if (data < 0 || hole < 0)
            return fail_errno(object, "SEEK_DATA");
        chunks.push_back({static_cast<uint64_t>(data), static_cast<uint64_t>(hole - data), 0});
        at = hole;
    }
    return chunks;
}

void fill_entry(const struct stat& st, images::ghost_file_entry& entry) {
    entry.set_uid(st.st_uid);
    entry.set_gid(st.st_gid);
    entry.set_mode(st.st_mode);
    entry.set_dev(static_cast<uint32_t>(st.st_dev));
    entry.set_ino(st.st_ino);
    if (S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode))
        entry.set_rdev(static_cast<uint32_t>(st.st_rdev));
    entry.mutable_atim()->set_tv_sec(static_cast<uint64_t>(st.st_atim.tv_sec));
    entry.mutable_atim()->set_tv_usec(static_cast<uint64_t>(st.st_atim.tv_nsec / 1000));
    entry.mutable_mtim()->set_tv_sec(static_cast<uint64_t>(st.st_mtim.tv_sec));
    entry.mutable_mtim()->set_tv_usec(static_cast<uint64_t>(st.st_mtim.tv_nsec / 1000));
}

Error ghost_blocker(const OpenFile& file, std::string message, std::string remedy) {
    return Error{ErrorKind::kUnsupported, file.object, std::move(message), std::move(remedy), 0, {}};
}

Result<void> take_content(const OpenFile& file, FileDumpContext& context, GhostFile& ghost) {
    const uint64_t size = static_cast<uint64_t>(file.st.st_size);
    const uint64_t stored = std::min(size, static_cast<uint64_t>(file.st.st_blocks) * 512);
    if (stored > context.options().ghost_limit) {
        context.blocker(ghost_blocker(
            file, fmt::format("deleted file of {} bytes, more than the limit of {}", stored,
                              context.options().ghost_limit),
            "raise the ghost limit, or let the program close the file"));
        return {};
    }
    // The duplicate may be write-only or O_PATH, and its position must not move.
    ScopedFd source(open(fmt::format("/proc/self/fd/{}", file.copy).c_str(), O_RDONLY | O_CLOEXEC));
    if (!source)
        return fail_errno(file.object, "opening the deleted file for reading");
    CKPT_ASSIGN(ghost.chunks, data_chunks(source.get(), size, file.object));
    bool sparse = ghost.chunks.size() != 1 || ghost.chunks[0].length < size;
    if (sparse && size > 0) {
        ghost.entry.set_chunks(true);
        ghost.entry.set_size(size);
    }
    ghost.source = std::make_shared<ScopedFd>(std::move(source));
    return {};
}

void note(FileImages& images, uint32_t file_id, uint32_t ghost_id) {
    images::remap_file_path_entry remap;
    remap.set_orig_id(file_id);
    remap.set_remap_id(ghost_id);
    remap.set_remap_type(images::GHOST);
    images.remaps.push_back(remap);
    images.ghost_of[file_id] = ghost_id;
}

std::string parent_of(const std::string& path) {
    size_t slash = path.rfind('/');
    return slash == 0 || slash == std::string::npos ? "/" : path.substr(0, slash);
}

// CRIU's images hold the content plain unless the entry says chunks.
void copy_content(const GhostFile& ghost, uint32_t ghost_id, std::string_view label, Slot fd,
                  FilePlanContext& context) {
    if (ghost.chunks.empty())
        return;
    Program& agent = context.agent();
    const std::string image = images::image_name(images::ImageType::kGhostFile, ghost_id);
    Slot source = agent.descriptor(label, SYS_openat,
                                   {context.image_dir(), context.plan().string(image),
                                    O_RDONLY | O_CLOEXEC});
    for (const GhostFile::Chunk& chunk : ghost.chunks) {
        agent.call(label, SYS_lseek, {fd, chunk.offset, SEEK_SET});
        ArenaRef offset = context.plan().object(chunk.data_offset);
        agent.call_expect(label, static_cast<int64_t>(chunk.length), SYS_sendfile,
                          {fd, source, offset, chunk.length});
    }
    agent.call(label, SYS_close, {source});
}

// /proc shows the name under which a deleted file was made; it is its old one unless something else has
// that now. Making fails where the name is taken, so what is removed is ours.
ArenaRef ghost_name(const std::string& path, FilePlanContext& context) {
    return context.plan().string(context.is_free(path) ? path : path + ".checkpointd-ghost");
}

Slot make_directory(const std::string& path, const images::ghost_file_entry& entry,
                    std::string_view label, FilePlanContext& context) {
    Program& agent = context.agent();
    const ArenaRef name = ghost_name(path, context);
    agent.call(label, SYS_mkdir, {name, entry.mode() & 07777});
    Slot slot = agent.descriptor(label, SYS_openat,
                                 {AT_FDCWD, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC});
    agent.call(label, SYS_fchown, {slot, entry.uid(), entry.gid()});
    agent.call(label, SYS_fchmod, {slot, entry.mode() & 07777});
    agent.call(label, SYS_rmdir, {name});
    return slot;
}

// A FIFO or a device, held by O_PATH: opening it for good is up to its kind.
Slot make_node(const std::string& path, const images::ghost_file_entry& entry,
               std::string_view label, FilePlanContext& context) {
    Program& agent = context.agent();
    const ArenaRef name = ghost_name(path, context);
    agent.call(label, SYS_mknodat, {AT_FDCWD, name, entry.mode(), entry.rdev()});
    agent.call(label, SYS_fchmodat, {AT_FDCWD, name, entry.mode() & 07777});
    agent.call(label, SYS_lchown, {name, entry.uid(), entry.gid()});
    Slot slot = agent.descriptor(label, SYS_openat,
                                 {AT_FDCWD, name, O_PATH | O_NOFOLLOW | O_CLOEXEC});
    agent.call(label, SYS_unlinkat, {AT_FDCWD, name, 0});
    return slot;
}

// Images count microseconds.
void set_times(const images::ghost_file_entry& entry, std::string_view label, Slot fd,
               FilePlanContext& context) {
    if (!entry.has_atim() || !entry.has_mtim())
        return;
    auto time = [](const images::timeval& value) {
        return timespec{static_cast<time_t>(value.tv_sec()),
                        static_cast<long>(value.tv_usec() % 1'000'000 * 1000)};
    };
    const timespec times[2] = {time(entry.atim()), time(entry.mtim())};
    context.agent().call(label, SYS_utimensat,
                         {fd, 0, context.plan().bytes(times, sizeof(times)), 0});
}

}  // namespace

Result<void> dump_ghost(const OpenFile& file, FileDumpContext& context, uint32_t file_id) {
    FileImages& images = context.images();
    for (const auto& [id, ghost] : images.ghosts) {
        if (ghost.entry.ino() == file.st.st_ino &&
            ghost.entry.dev() == static_cast<uint32_t>(file.st.st_dev)) {
            note(images, file_id, id);
            return {};
        }
    }
    if (S_ISLNK(file.st.st_mode) || S_ISSOCK(file.st.st_mode)) {
        context.blocker(ghost_blocker(file, "a deleted link or socket is open",
                                      "let the program close it"));
        return {};
    }
    GhostFile ghost;
    fill_entry(file.st, ghost.entry);
    if (S_ISREG(file.st.st_mode))
        CKPT_TRY(take_content(file, context, ghost));
    uint32_t id = context.new_id();
    images.ghosts.emplace(id, std::move(ghost));
    note(images, file_id, id);
    return {};
}

Result<Slot> plan_ghost(uint32_t ghost_id, const std::string& path, FilePlanContext& context) {
    if (auto known = context.shared_slot("ghost", ghost_id))
        return *known;
    auto found = context.images().ghosts.find(ghost_id);
    if (found == context.images().ghosts.end())
        return fail(ErrorKind::kBadImage, images::image_name(images::ImageType::kGhostFile, ghost_id),
                    "the content of a deleted file is missing");
    const GhostFile& ghost = found->second;
    const std::string label = fmt::format("deleted file {}", path);
    if (S_ISDIR(ghost.entry.mode())) {
        Slot slot = make_directory(path, ghost.entry, label, context);
        context.share_slot("ghost", ghost_id, slot);
        return slot;
    }
    if (S_ISFIFO(ghost.entry.mode()) || S_ISCHR(ghost.entry.mode()) ||
        S_ISBLK(ghost.entry.mode())) {
        Slot slot = make_node(path, ghost.entry, label, context);
        context.share_slot("ghost", ghost_id, slot);
        return slot;
    }
    if (!S_ISREG(ghost.entry.mode()))
        return fail(ErrorKind::kUnsupported, path, "a deleted link or socket is open");
    Program& agent = context.agent();
    Slot slot = agent.descriptor(label, SYS_openat,
                                 {AT_FDCWD, context.plan().string(parent_of(path)),
                                  O_TMPFILE | O_RDWR | O_CLOEXEC, ghost.entry.mode() & 07777});
    copy_content(ghost, ghost_id, label, slot, context);
    if (ghost.entry.has_size())
        agent.call(label, SYS_ftruncate, {slot, ghost.entry.size()});
    agent.call(label, SYS_fchown, {slot, ghost.entry.uid(), ghost.entry.gid()});
    agent.call(label, SYS_fchmod, {slot, ghost.entry.mode() & 07777});
    set_times(ghost.entry, label, slot, context);
    context.share_slot("ghost", ghost_id, slot);
    return slot;
}

}  // namespace checkpointd
