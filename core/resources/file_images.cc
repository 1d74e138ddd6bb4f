// SPDX-License-Identifier: LGPL-2.1-or-later
#include <algorithm>
#include <fcntl.h>
#include <unistd.h>

#include <fmt/core.h>

#include "core/resources/files.h"
#include "images/image_dir.h"
#include "images/proto/sockets.pb.h"

namespace checkpointd {

namespace {

using images::ImageDir;
using images::ImageReader;
using images::ImageType;
using images::ImageWriter;

Result<ImageDir> open_dir(int fd) {
    ScopedFd copy(fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!copy)
        return fail_errno("image directory", "F_DUPFD_CLOEXEC");
    return ImageDir::adopt(std::move(copy), "image");
}

template <typename Messages>
Result<void> write_records(const ImageDir& dir, ImageType type, uint64_t id,
                           const Messages& messages) {
    CKPT_ASSIGN(ImageWriter writer, dir.create(type, id));
    for (const auto& message : messages)
        CKPT_TRY(writer.record(message));
    return writer.finish();
}

Result<void> write_pipes(const ImageDir& dir, ImageType type,
                         const std::map<uint32_t, PipeContent>& pipes) {
    if (pipes.empty())
        return {};
    CKPT_ASSIGN(ImageWriter writer, dir.create(type));
    for (const auto& [pipe_id, content] : pipes) {
        images::pipe_data_entry entry;
        entry.set_pipe_id(pipe_id);
        entry.set_bytes(static_cast<uint32_t>(content.bytes.size()));
        if (content.size != 0)
            entry.set_size(content.size);
        for (uint32_t packet : content.packets)
            entry.add_packets(packet);
        CKPT_TRY(writer.record(entry));
        CKPT_TRY(writer.payload(content.bytes.data(), content.bytes.size()));
    }
    return writer.finish();
}

Result<void> write_queues(const ImageDir& dir, const FileImages& images) {
    if (images.queues.empty())
        return {};
    CKPT_ASSIGN(ImageWriter writer, dir.create(ImageType::kSkQueues));
    for (const auto& [file_id, messages] : images.queues) {
        for (const std::string& message : messages) {
            images::sk_packet_entry entry;
            entry.set_id_for(file_id);
            entry.set_length(static_cast<uint32_t>(message.size()));
            CKPT_TRY(writer.record(entry));
            CKPT_TRY(writer.payload(message.data(), message.size()));
        }
    }
    return writer.finish();
}

Result<void> read_queues(const ImageDir& dir, FileImages& images) {
    CKPT_ASSIGN(std::optional<ImageReader> reader, dir.open_optional(ImageType::kSkQueues));
    while (reader) {
        images::sk_packet_entry entry;
        CKPT_ASSIGN(bool there, reader->next(entry));
        if (!there)
            return {};
        if (entry.scm_size() != 0)
            return fail(ErrorKind::kUnsupported, reader->name(),
                        "descriptors travel in a socket's queue (SCM_RIGHTS)");
        CKPT_ASSIGN(std::string message, reader->payload(entry.length()));
        images.queues[entry.id_for()].push_back(std::move(message));
    }
    return {};
}

Result<void> copy_range(int source, uint64_t offset, uint64_t length, ImageWriter& writer) {
    std::string piece(1 << 20, '\0');
    while (length > 0) {
        size_t want = static_cast<size_t>(std::min<uint64_t>(length, piece.size()));
        ssize_t got = pread(source, piece.data(), want, static_cast<off_t>(offset));
        if (got <= 0)
            return fail_errno(writer.name(), "reading a deleted file", got == 0 ? EIO : errno);
        CKPT_TRY(writer.payload(piece.data(), static_cast<size_t>(got)));
        offset += static_cast<uint64_t>(got);
        length -= static_cast<uint64_t>(got);
    }
    return {};
}

Result<void> write_ghost(const ImageDir& dir, uint32_t id, const GhostFile& ghost) {
    CKPT_ASSIGN(ImageWriter writer, dir.create(ImageType::kGhostFile, id));
    CKPT_TRY(writer.record(ghost.entry));
    for (const GhostFile::Chunk& chunk : ghost.chunks) {
        if (ghost.entry.chunks()) {
            images::ghost_chunk_entry entry;
            entry.set_len(chunk.length);
            entry.set_off(chunk.offset);
            CKPT_TRY(writer.record(entry));
        }
        CKPT_TRY(copy_range(ghost.source->get(), chunk.offset, chunk.length, writer));
    }
    return writer.finish();
}

Result<void> write_side_images(const FileImages& images, const ImageDir& dir) {
    if (!images.remaps.empty())
        CKPT_TRY(write_records(dir, ImageType::kRemapFpath, 0, images.remaps));
    for (const auto& [id, ghost] : images.ghosts)
        CKPT_TRY(write_ghost(dir, id, ghost));
    CKPT_TRY(write_pipes(dir, ImageType::kPipesData, images.pipes));
    CKPT_TRY(write_pipes(dir, ImageType::kFifoData, images.fifos));
    CKPT_TRY(write_queues(dir, images));
    if (!images.memfds.empty())
        CKPT_TRY(write_records(dir, ImageType::kMemfd, 0, images.memfds));
    if (!images.locks.empty())
        CKPT_TRY(write_records(dir, ImageType::kFileLocks, 0, images.locks));
    return {};
}

Result<std::map<uint32_t, PipeContent>> read_pipes(const ImageDir& dir, ImageType type) {
    std::map<uint32_t, PipeContent> pipes;
    CKPT_ASSIGN(std::optional<ImageReader> reader, dir.open_optional(type));
    if (!reader)
        return pipes;
    while (true) {
        images::pipe_data_entry entry;
        CKPT_ASSIGN(bool there, reader->next(entry));
        if (!there)
            return pipes;
        PipeContent& content = pipes[entry.pipe_id()];
        CKPT_ASSIGN(content.bytes, reader->payload(entry.bytes()));
        content.size = entry.size();
        content.packets.assign(entry.packets().begin(), entry.packets().end());
        uint64_t sum = 0;
        for (uint32_t packet : content.packets)
            sum += packet;
        if (!content.packets.empty() && sum != content.bytes.size())
            return tl::unexpected(reader->bad("the packets of a pipe are not what is in it"));
    }
}

Result<GhostFile> read_ghost(const ImageDir& dir, uint32_t id) {
    GhostFile ghost;
    CKPT_ASSIGN(ImageReader reader, dir.open_image(ImageType::kGhostFile, id));
    CKPT_ASSIGN(ghost.entry, reader.expect<images::ghost_file_entry>());
    if (!ghost.entry.chunks()) {
        if (reader.remaining() > 0)
            ghost.chunks.push_back({0, reader.remaining(), reader.offset()});
        return ghost;
    }
    while (true) {
        images::ghost_chunk_entry chunk;
        CKPT_ASSIGN(bool there, reader.next(chunk));
        if (!there)
            return ghost;
        ghost.chunks.push_back({chunk.off(), chunk.len(), reader.offset()});
        CKPT_TRY(reader.skip(chunk.len()));
    }
}

Result<void> read_remaps(const ImageDir& dir, FileImages& images) {
    CKPT_ASSIGN(images.remaps,
                dir.read_all<images::remap_file_path_entry>(ImageType::kRemapFpath));
    for (const images::remap_file_path_entry& remap : images.remaps) {
        // Written by old versions without a type: a ghost.
        if (remap.has_remap_type() && remap.remap_type() != images::GHOST)
            continue;
        images.ghost_of[remap.orig_id()] = remap.remap_id();
        if (images.ghosts.contains(remap.remap_id()))
            continue;
        CKPT_ASSIGN(GhostFile ghost, read_ghost(dir, remap.remap_id()));
        images.ghosts.emplace(remap.remap_id(), std::move(ghost));
    }
    return {};
}

}  // namespace

Result<void> write_file_images(const FileImages& images, int image_dir_fd) {
    CKPT_ASSIGN(ImageDir dir, open_dir(image_dir_fd));
    CKPT_TRY(write_records(dir, ImageType::kFiles, 0, images.files));
    for (const auto& [id, table] : images.tables)
        CKPT_TRY(write_records(dir, ImageType::kFdinfo, id, table));
    for (const auto& [pid, fs] : images.fs)
        CKPT_TRY(dir.write_one(ImageType::kFs, static_cast<uint64_t>(pid), fs));
    return write_side_images(images, dir);
}

Result<FileImages> read_file_images(int image_dir_fd, const std::set<uint32_t>& files_ids,
                                    const std::set<pid_t>& pids) {
    FileImages images;
    CKPT_ASSIGN(ImageDir dir, open_dir(image_dir_fd));
    CKPT_ASSIGN(images.files, dir.read_all<images::file_entry>(ImageType::kFiles));
    for (uint32_t id : files_ids) {
        CKPT_ASSIGN(images.tables[id],
                    dir.read_all<images::fdinfo_entry>(ImageType::kFdinfo, id));
    }
    for (pid_t pid : pids) {
        CKPT_ASSIGN(images.fs[pid],
                    dir.read_one<images::fs_entry>(ImageType::kFs, static_cast<uint64_t>(pid)));
    }
    CKPT_TRY(read_remaps(dir, images));
    CKPT_ASSIGN(images.pipes, read_pipes(dir, ImageType::kPipesData));
    CKPT_ASSIGN(images.fifos, read_pipes(dir, ImageType::kFifoData));
    CKPT_TRY(read_queues(dir, images));
    CKPT_ASSIGN(images.memfds, dir.read_all<images::memfd_inode_entry>(ImageType::kMemfd));
    CKPT_ASSIGN(images.locks, dir.read_all<images::file_lock_entry>(ImageType::kFileLocks));
    return images;
}

}  // namespace checkpointd
