// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "images/manifest.h"

namespace checkpointd::images {

// Checks files by what somebody else reads of them, so that they are read once. Any thread.
class ContentCheck {
  public:
    // Files without digests pass.
    explicit ContentCheck(std::vector<FileDigest> files);

    std::set<std::string> names() const;
    // What was read of a file from `offset` on. Parts of one chunk (kDigestChunk) count where they come in order.
    // kBadImage: it is not what was written.
    Result<void> add(const std::string& name, uint64_t offset, const std::byte* data, size_t size);
    // Reads what was not checked by now.
    Result<void> finish(const ImageDir& dir, unsigned threads) const;

  private:
    struct Chunk {
        uint64_t next = 0;                    // bytes of it that have come; all: it is good
        std::unique_ptr<ChunkDigest> digest;  // of these; null while somebody adds to it, or none has come
    };
    struct File {
        FileDigest expected;
        std::vector<Chunk> chunks;
    };
    std::vector<uint64_t> unchecked(const File& file) const;
    std::unique_ptr<ChunkDigest> take(Chunk& chunk, uint64_t at);
    Result<void> add_part(File& file, uint64_t index, uint64_t at, const std::byte* data, size_t size);

    mutable std::mutex mutex_;  // of all chunks
    std::map<std::string, File> files_;
};

}  // namespace checkpointd::images
