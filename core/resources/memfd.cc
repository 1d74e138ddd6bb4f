// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/resources/memfd.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fmt/core.h>

#include "core/resources/kinds.h"
#include "core/resources/open_file.h"

namespace checkpointd {

namespace {

constexpr std::string_view kPrefix = "/memfd:";
constexpr std::string_view kDeleted = " (deleted)";

// Shared anonymous memory has a file of the same kind, which somebody may have opened in map_files.
bool is_anonymous_segment(const OpenFile& file) {
    return file.link == "/dev/zero (deleted)" && file.filesystem() == TMPFS_MAGIC;
}

std::string name_of(const OpenFile& file) {
    std::string_view name = file.link;
    name.remove_prefix(name.starts_with(kPrefix) ? kPrefix.size() : 1);
    if (name.ends_with(kDeleted))
        name.remove_suffix(kDeleted.size());
    return std::string(name);
}

const images::memfd_inode_entry* known_inode(const FileImages& images, uint32_t shmid) {
    for (const images::memfd_inode_entry& inode : images.memfds)
        if (inode.shmid() == shmid)
            return &inode;
    return nullptr;
}

Result<void> dump_inode(const OpenFile& file, uint32_t shmid, FileDumpContext& context,
                        images::memfd_inode_entry& inode) {
    // A mapping's copy is O_PATH, which F_GET_SEALS refuses.
    ScopedFd open_copy(open(fmt::format("/proc/self/fd/{}", file.copy).c_str(), O_RDONLY | O_CLOEXEC));
    if (!open_copy)
        return fail_errno(file.object, "opening the memfd");
    int seals = fcntl(open_copy.get(), F_GET_SEALS);
    if (seals < 0)
        return fail_errno(file.object, "F_GET_SEALS");
    inode.set_name(name_of(file));
    inode.set_uid(file.st.st_uid);
    inode.set_gid(file.st.st_gid);
    inode.set_mode(file.st.st_mode);
    inode.set_size(static_cast<uint64_t>(file.st.st_size));
    inode.set_shmid(shmid);
    inode.set_seals(static_cast<uint32_t>(seals));
    inode.set_inode_id(context.new_id());
    return context.want_memory(shmid, inode.size(), open_copy.get());
}

Result<void> dump(const OpenFile& file, FileDumpContext& context, images::file_entry& entry) {
    const uint32_t shmid = static_cast<uint32_t>(file.st.st_ino);
    images::memfd_file_entry& record = *entry.mutable_memfd();
    record.set_id(entry.id());
    record.set_flags(file.flags);
    record.set_pos(file.pos);
    put_owner(file, *record.mutable_fown());
    record.set_inode_id(0);
    if (file.filesystem() == HUGETLBFS_MAGIC) {
        context.blocker(Error{ErrorKind::kUnsupported, file.object, "memfd of huge pages (MFD_HUGETLB)",
                              "run the program without explicit huge pages", 0, {}});
        return {};
    }
    FileImages& images = context.images();
    const images::memfd_inode_entry* known = known_inode(images, shmid);
    if (known == nullptr) {
        images::memfd_inode_entry inode;
        CKPT_TRY(dump_inode(file, shmid, context, inode));
        known = &images.memfds.emplace_back(std::move(inode));
    }
    record.set_inode_id(static_cast<uint32_t>(known->inode_id()));
    return {};
}

const images::memfd_inode_entry* inode_of(const FileImages& images, uint32_t inode_id) {
    for (const images::memfd_inode_entry& inode : images.memfds)
        if (inode.inode_id() == inode_id)
            return &inode;
    return nullptr;
}

Result<Slot> plan_inode(const images::memfd_inode_entry& inode, FilePlanContext& context) {
    if (auto known = context.shared_slot("memfd", inode.inode_id()))
        return *known;
    if (auto segment = context.segment(inode.shmid())) {
        context.share_slot("memfd", inode.inode_id(), *segment);
        return *segment;
    }
    const std::string label = fmt::format("memfd {} ({})", inode.inode_id(), inode.name());
    if (inode.hugetlb_flag() != 0)
        return fail(ErrorKind::kUnsupported, label, "memfd of huge pages");
    const bool sealable = inode.seals() != F_SEAL_SEAL;
    Program& agent = context.agent();
    Slot slot = agent.descriptor(label, SYS_memfd_create,
                                 {context.plan().string(inode.name()),
                                  MFD_CLOEXEC | (sealable ? MFD_ALLOW_SEALING : 0u)});
    agent.call(label, SYS_ftruncate, {slot, inode.size()});
    CKPT_TRY(context.fill_memory(inode.shmid(), inode.size(), slot));
    if (inode.has_mode())
        agent.call(label, SYS_fchmod, {slot, inode.mode() & 07777});
    agent.call(label, SYS_fchown, {slot, inode.uid(), inode.gid()});
    // Mappings that may write are made later than this, which a seal against future writes would
    // refuse; every other seal held already when they were made.
    if (sealable && inode.seals() != 0 && !(inode.seals() & F_SEAL_FUTURE_WRITE))
        agent.call(label, SYS_fcntl, {slot, F_ADD_SEALS, inode.seals()});
    context.share_slot("memfd", inode.inode_id(), slot);
    return slot;
}

Result<std::optional<Slot>> plan(const images::file_entry& entry, FilePlanContext& context) {
    const images::memfd_file_entry& record = entry.memfd();
    const images::memfd_inode_entry* inode = inode_of(context.images(), record.inode_id());
    const std::string label = fmt::format("memfd file {}", entry.id());
    if (inode == nullptr)
        return fail(ErrorKind::kBadImage, label, "memfd.img does not tell its inode");
    CKPT_ASSIGN(Slot origin, plan_inode(*inode, context));
    // Only mapped: CRIU writes shared anonymous memory this way, with the mapping's rights elsewhere.
    if (context.installed(entry.id()).empty())
        return origin;
    Program& agent = context.agent();
    const unsigned flags = record.flags() & ~static_cast<unsigned>(O_ASYNC);
    const bool writable = (flags & O_ACCMODE) == O_RDWR;
    Slot slot = origin;
    // execveat() from a memfd works only on the description that memfd_create made; so the first
    // writable one gets it.
    if (writable && !context.shared_slot("memfd taken", inode->inode_id()))
        context.share_slot("memfd taken", inode->inode_id(), origin);
    else
        slot = context.reopen(agent, label, origin, flags);
    agent.call(label, SYS_lseek, {slot, record.pos(), SEEK_SET});
    context.settle(label, slot, entry.id(), record.flags(), record.fown());
    if (inode->seals() & F_SEAL_FUTURE_WRITE && !context.shared_slot("memfd sealed", inode->inode_id()) &&
        writable) {
        context.share_slot("memfd sealed", inode->inode_id(), slot);
        context.when_installed(entry.id(), [=, seals = inode->seals()](Program& late,
                                                                       const Installed& where) {
            late.call(label, SYS_fcntl, {where.number, F_ADD_SEALS, seals});
        });
    }
    return slot;
}

}  // namespace

bool is_memfd(const OpenFile& file) {
    return S_ISREG(file.st.st_mode) && file.st.st_nlink == 0 &&
           (file.link.starts_with(kPrefix) || is_anonymous_segment(file));
}

const FileKind kMemfdKind{images::MEMFD, "memfd", is_memfd, dump, plan};

}  // namespace checkpointd
