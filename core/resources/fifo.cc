// SPDX-License-Identifier: LGPL-2.1-or-later
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <fmt/core.h>

#include "core/resources/ghost.h"
#include "core/resources/kinds.h"
#include "core/resources/open_file.h"
#include "core/resources/pipe_content.h"
#include "core/resources/regular.h"

namespace checkpointd {

namespace {

bool recognise(const OpenFile& file) {
    return S_ISFIFO(file.st.st_mode) && file.link.starts_with('/') && !(file.flags & O_PATH);
}

// The path is a record of its own, as for a regular file; `regf_id` points to it.
Result<void> dump(const OpenFile& file, FileDumpContext& context, images::file_entry& entry) {
    const uint32_t pipe_id = static_cast<uint32_t>(file.st.st_ino);
    CKPT_ASSIGN(uint32_t path_id, context.add_file(file, kRegularKind));
    images::fifo_entry& record = *entry.mutable_fifo();
    record.set_id(entry.id());
    record.set_pipe_id(pipe_id);
    record.set_regf_id(path_id);
    return dump_pipe_content(file, pipe_id, context.images().fifos);
}

Result<std::optional<Slot>> plan(const images::file_entry& entry, FilePlanContext& context) {
    const images::fifo_entry& record = entry.fifo();
    const uint32_t path_id = record.has_regf_id() ? record.regf_id() : record.id();
    const images::file_entry* path = find_file(context.images(), path_id);
    if (path == nullptr || !path->has_reg() || path->reg().name().empty())
        return fail(ErrorKind::kBadImage, fmt::format("fifo {}", entry.id()), "its path is missing");
    const images::reg_file_entry& reg = path->reg();
    const std::string label = fmt::format("fifo {} ({})", entry.id(), reg.name());
    const ArenaRef name = context.plan().string(reg.name());
    Program& agent = context.agent();
    std::optional<Slot> deleted;
    if (const uint32_t* ghost = find_ghost(context.images(), path_id)) {
        CKPT_ASSIGN(deleted, plan_ghost(*ghost, reg.name(), context));
    }
    auto open = [&](unsigned how) {
        return deleted ? context.reopen(agent, label, *deleted, how)
                       : agent.descriptor(label, SYS_openat, {AT_FDCWD, name, how | O_CLOEXEC});
    };
    auto both = context.shared_slot("fifo", record.pipe_id());
    if (!both) {
        // Opened both ways it never blocks, and holds the content until all descriptions are open.
        both = open(O_RDWR | O_NONBLOCK);
        context.share_slot("fifo", record.pipe_id(), *both);
        auto content = context.images().fifos.find(record.pipe_id());
        if (content != context.images().fifos.end())
            plan_pipe_content(content->second, label, *both, context);
    }
    const unsigned flags = reg.flags() & ~static_cast<unsigned>(O_CREAT | O_EXCL | O_TRUNC | O_ASYNC);
    Slot slot = open(flags);
    context.settle(label, slot, entry.id(), reg.flags(), reg.fown());
    return slot;
}

}  // namespace

const FileKind kFifoKind{images::FIFO, "fifo", recognise, dump, plan};

}  // namespace checkpointd
