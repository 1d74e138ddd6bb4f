// SPDX-License-Identifier: LGPL-2.1-or-later
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <fmt/core.h>

#include "core/resources/kinds.h"
#include "core/resources/open_file.h"
#include "core/resources/pipe_content.h"

namespace checkpointd {

namespace {

bool recognise(const OpenFile& file) {
    return S_ISFIFO(file.st.st_mode) && file.link.starts_with("pipe:[");
}

std::string key_of(uint32_t pipe_id) {
    return fmt::format("pipe:[{}]", pipe_id);
}

bool reads(unsigned flags) {
    return (flags & O_ACCMODE) != O_WRONLY;
}
bool writes(unsigned flags) {
    return (flags & O_ACCMODE) != O_RDONLY;
}

// The kernel tells whether anybody holds the far end: a reader sees POLLHUP when there is no writer, a
// writer POLLERR when there is no reader. Our duplicates do not count twice, as they share the file.
bool far_end_lives(const OpenFile& file) {
    pollfd query{file.copy, 0, 0};
    if (poll(&query, 1, 0) < 0)
        return false;
    return (query.revents & (POLLHUP | POLLERR)) == 0;
}

bool forest_has(const FileImages& images, uint32_t pipe_id, bool (*end)(unsigned)) {
    for (const images::file_entry& other : images.files)
        if (other.has_pipe() && other.pipe().pipe_id() == pipe_id && end(other.pipe().flags()))
            return true;
    return false;
}

void check_far_end(const OpenFile& file, uint32_t pipe_id, FileDumpContext& context) {
    bool one_way = reads(file.flags) != writes(file.flags);
    if (!one_way || !far_end_lives(file))
        return;
    auto* far_end = reads(file.flags) ? writes : reads;
    const std::string object = file.object;
    context.when_collected([=, &context](FileTables&) -> Result<void> {
        if (!forest_has(context.images(), pipe_id, far_end))
            context.blocker(Error{
                ErrorKind::kUnsupported, object, "the other end of this pipe is held elsewhere",
                fmt::format("checkpoint that process as well, or declare {} external", key_of(pipe_id)),
                0, {}});
        return {};
    });
}

Result<void> dump(const OpenFile& file, FileDumpContext& context, images::file_entry& entry) {
    const uint32_t pipe_id = static_cast<uint32_t>(file.st.st_ino);
    images::pipe_entry& record = *entry.mutable_pipe();
    record.set_id(entry.id());
    record.set_pipe_id(pipe_id);
    record.set_flags(file.flags);
    put_owner(file, *record.mutable_fown());
    if (context.is_external(key_of(pipe_id)))
        return {};  // what waits in it stays with the one who holds it
    if (!context.options().outside_pipes)
        check_far_end(file, pipe_id, context);
    return dump_pipe_content(file, pipe_id, context.images().pipes);
}

// Both ends of a pipe, made when the first description of it is planned.
struct Ends {
    Slot reader;
    Slot writer;
};

Ends ends_of(uint32_t pipe_id, std::string_view label, FilePlanContext& context) {
    auto reader = context.shared_slot("pipe reader", pipe_id);
    auto writer = context.shared_slot("pipe writer", pipe_id);
    if (reader && writer)
        return {*reader, *writer};
    Program& agent = context.agent();
    const ArenaRef pair = context.plan().reserve(8, 4);
    agent.call(label, SYS_pipe2, {pair, O_CLOEXEC});
    Ends ends;
    ends.reader = agent.descriptor_from(label, pair);
    ends.writer = agent.descriptor_from(label, ArenaRef{pair.offset + 4});
    context.share_slot("pipe reader", pipe_id, ends.reader);
    context.share_slot("pipe writer", pipe_id, ends.writer);
    auto content = context.images().pipes.find(pipe_id);
    if (content != context.images().pipes.end())
        plan_pipe_content(content->second, label, ends.writer, context);
    return ends;
}

// The first description of an end is the one that pipe2 made; further ones were opened through /proc.
Slot description(const images::pipe_entry& record, std::string_view label, FilePlanContext& context) {
    const uint32_t id = record.pipe_id();
    const unsigned flags = record.flags() & ~static_cast<unsigned>(O_ASYNC | O_LARGEFILE);
    if (auto outside = context.external(key_of(id)))
        return context.reopen(context.agent(), label, *outside, flags);
    const Ends ends = ends_of(id, label, context);
    const bool one_way = reads(flags) != writes(flags);
    const char* taken = reads(flags) ? "pipe reader taken" : "pipe writer taken";
    const Slot end = reads(flags) ? ends.reader : ends.writer;
    if (!one_way || context.shared_slot(taken, id))
        return context.reopen(context.agent(), label, end, flags);
    context.share_slot(taken, id, end);
    return end;
}

Result<std::optional<Slot>> plan(const images::file_entry& entry, FilePlanContext& context) {
    const images::pipe_entry& record = entry.pipe();
    const std::string label = fmt::format("pipe {} ({})", entry.id(), key_of(record.pipe_id()));
    Slot slot = description(record, label, context);
    context.settle(label, slot, entry.id(), record.flags(), record.fown());
    return slot;
}

}  // namespace

const FileKind kPipeKind{images::PIPE, "pipe", recognise, dump, plan};

}  // namespace checkpointd
