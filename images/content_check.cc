// SPDX-License-Identifier: LGPL-2.1-or-later
#include "images/content_check.h"

#include <algorithm>
#include <utility>

namespace checkpointd::images {
namespace {

uint64_t chunk_bytes(const FileDigest& file, uint64_t index) {
    return std::min(kDigestChunk, file.size - index * kDigestChunk);
}

}  // namespace

ContentCheck::ContentCheck(std::vector<FileDigest> files) {
    for (FileDigest& file : files) {
        File& made = files_[file.name];
        made.chunks.resize(file.chunks.size());
        made.expected = std::move(file);
    }
}

std::set<std::string> ContentCheck::names() const {
    std::set<std::string> names;
    for (const auto& [name, file] : files_)
        names.insert(name);
    return names;
}

// Null: what begins there cannot be added, nor what follows.
std::unique_ptr<ChunkDigest> ContentCheck::take(Chunk& chunk, uint64_t at) {
    const std::lock_guard lock(mutex_);
    if (chunk.next != at)
        return nullptr;
    return at == 0 && !chunk.digest ? std::make_unique<ChunkDigest>() : std::move(chunk.digest);
}

Result<void> ContentCheck::add_part(File& file, uint64_t index, uint64_t at, const std::byte* data, size_t size) {
    Chunk& chunk = file.chunks[index];
    auto digest = take(chunk, at);
    if (!digest)
        return {};
    digest->add(data, size);
    const bool is_whole = at + size == chunk_bytes(file.expected, index);
    if (is_whole && digest->value() != file.expected.chunks[index])
        return tl::unexpected(damage(file.expected, index));
    const std::lock_guard lock(mutex_);
    chunk.next = at + size;
    chunk.digest = std::move(digest);
    return {};
}

Result<void> ContentCheck::add(const std::string& name, uint64_t offset, const std::byte* data, size_t size) {
    auto found = files_.find(name);
    if (found == files_.end() || found->second.chunks.empty())
        return {};
    File& file = found->second;
    const uint64_t end = std::min(offset + size, file.expected.size);
    while (offset < end) {
        const uint64_t index = offset / kDigestChunk;
        const size_t part = static_cast<size_t>(std::min(end, (index + 1) * kDigestChunk) - offset);
        CKPT_TRY(add_part(file, index, offset - index * kDigestChunk, data, part));
        offset += part;
        data += part;
    }
    return {};
}

std::vector<uint64_t> ContentCheck::unchecked(const File& file) const {
    const std::lock_guard lock(mutex_);
    std::vector<uint64_t> left;
    for (uint64_t i = 0; i < file.chunks.size(); ++i)
        if (file.chunks[i].next < chunk_bytes(file.expected, i))
            left.push_back(i);
    return left;
}

Result<void> ContentCheck::finish(const ImageDir& dir, unsigned threads) const {
    for (const auto& [name, file] : files_)
        CKPT_TRY(check_chunks(dir, file.expected, unchecked(file), threads));
    return {};
}

}  // namespace checkpointd::images
