// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/resources/pipe_content.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace checkpointd {

namespace {

constexpr size_t kDefaultSize = 65536;
constexpr size_t kPacketLimit = 4096;  // pipe(7): a packet has PIPE_BUF bytes at most

struct Pipe {
    ScopedFd reader;
    ScopedFd writer;
};

Result<Pipe> make_pipe(unsigned size, const std::string& object) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0)
        return fail_errno(object, "pipe2");
    Pipe pipe{ScopedFd(ends[0]), ScopedFd(ends[1])};
    if (size > kDefaultSize && fcntl(ends[1], F_SETPIPE_SZ, size) < 0)
        return fail_errno(object, "F_SETPIPE_SZ");
    return pipe;
}

// tee(2) shares the buffers and keeps their packet marks, so that reading the copy gives packet after
// packet. Whether there are any shows only when reads end before the room does.
Result<void> read_copy(int fd, PipeContent& content, const std::string& object) {
    std::string piece(kPacketLimit, '\0');
    std::vector<uint32_t> sizes;
    while (true) {
        ssize_t got = read(fd, piece.data(), piece.size());
        if (got < 0 && errno == EAGAIN)
            break;
        if (got < 0)
            return fail_errno(object, "reading the copy of a pipe");
        content.bytes.append(piece, 0, static_cast<size_t>(got));
        sizes.push_back(static_cast<uint32_t>(got));
    }
    for (size_t i = 0; i + 1 < sizes.size(); ++i)
        if (sizes[i] != kPacketLimit)
            content.packets = sizes;
    return {};
}

}  // namespace

Result<void> dump_pipe_content(const OpenFile& file, uint32_t pipe_id,
                               std::map<uint32_t, PipeContent>& into) {
    auto [found, is_new] = into.try_emplace(pipe_id);
    PipeContent& content = found->second;
    if (is_new) {
        int size = fcntl(file.copy, F_GETPIPE_SZ);
        if (size < 0)
            return fail_errno(file.object, "F_GETPIPE_SZ");
        content.size = static_cast<uint32_t>(size);
    }
    int waiting = 0;
    bool readable = (file.flags & O_ACCMODE) != O_WRONLY;
    if (!readable || !content.bytes.empty())
        return {};
    if (ioctl(file.copy, FIONREAD, &waiting) != 0)
        return fail_errno(file.object, "FIONREAD");
    if (waiting == 0)
        return {};
    CKPT_ASSIGN(Pipe copy, make_pipe(content.size, file.object));
    if (tee(file.copy, copy.writer.get(), content.size, SPLICE_F_NONBLOCK) < 0)
        return fail_errno(file.object, "tee");
    CKPT_TRY(read_copy(copy.reader.get(), content, file.object));
    if (content.bytes.size() != static_cast<size_t>(waiting))
        return fail(ErrorKind::kInternal, file.object, "the copy of the pipe is not complete");
    return {};
}

void plan_pipe_content(const PipeContent& content, std::string_view label, Slot writable,
                       FilePlanContext& context) {
    Program& agent = context.agent();
    if (content.size != 0 && content.size != kDefaultSize)
        agent.call(label, SYS_fcntl, {writable, F_SETPIPE_SZ, content.size});
    if (content.bytes.empty())
        return;
    const ArenaRef bytes = context.plan().bytes(content.bytes.data(), content.bytes.size());
    if (content.packets.empty()) {
        agent.call_expect(label, static_cast<int64_t>(content.bytes.size()), SYS_write,
                          {writable, bytes, content.bytes.size()});
        return;
    }
    agent.call(label, SYS_fcntl, {writable, F_SETFL, O_DIRECT});
    uint64_t at = bytes.offset;
    for (uint32_t size : content.packets) {
        agent.call_expect(label, size, SYS_write, {writable, ArenaRef{at}, size});
        at += size;
    }
    agent.call(label, SYS_fcntl, {writable, F_SETFL, 0});
}

}  // namespace checkpointd
