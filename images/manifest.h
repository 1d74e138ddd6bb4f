// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <stop_token>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "images/image_dir.h"

namespace checkpointd::images {

inline constexpr const char* kManifestName = "checkpointd-manifest.json";
// Whether an image may be restored (see ImageStore): changes after the commit, so no manifest lists it.
inline constexpr const char* kStateName = "checkpointd-state";
inline constexpr uint64_t kManifestVersion = 1;
// Digests cover chunks, so that writers and checkers of one large file can work side by side.
inline constexpr uint64_t kDigestChunk = 4 << 20;

// XXH3-64 of one chunk: a guard against damage, not against an attacker.
uint64_t chunk_digest(const void* data, size_t size);

// The same of a chunk that comes in pieces.
class ChunkDigest {
  public:
    ChunkDigest();
    ~ChunkDigest();
    void add(const void* data, size_t size);
    uint64_t value() const;

  private:
    struct State;
    std::unique_ptr<State> state_;
};

// What the manifest says of one file. `chunks` is empty where digests were not wanted.
struct FileDigest {
    std::string name;
    uint64_t size = 0;
    std::vector<uint64_t> chunks;
    bool operator==(const FileDigest&) const = default;
};

struct Manifest {
    std::vector<FileDigest> files;
};

// Reads a whole file in chunks with up to `threads` threads.
Result<FileDigest> digest_file(const ImageDir& dir, const std::string& name, unsigned threads);

std::string to_json(const Manifest& manifest);
Result<Manifest> parse_manifest(const std::string& text, const std::string& object);
Result<Manifest> read_manifest(const ImageDir& dir);

// Whether a file is nothing but copied: the memory of processes, or that of devices, which plugins keep in files that are called
// PLUGIN-pages-..., or gpu-cs-..., as CRIU's for CUDA has them.
bool holds_memory(const std::string& name);
// Reads those `chunks` of a file; kBadImage if one is not as the manifest says.
Result<void> check_chunks(const ImageDir& dir, const FileDigest& expected, const std::vector<uint64_t>& chunks,
                          unsigned threads, const std::stop_token& stop = {});
// kBadImage: a chunk of `file` is not what was written.
Error damage(const FileDigest& file, uint64_t chunk);

enum class VerifyDepth {
    kSizes,      // every listed file is there in its size, and no image file is there unlisted: cheap
    kButMemory,  // and every chunk has its digest, except in files that hold memory
    kFull,       // and there too: reads everything
};
// kBadImage that lists all files at fault; kCancelled once `stop` was asked for. Of `others` only the size is looked at.
Result<void> verify(const ImageDir& dir, VerifyDepth depth, unsigned threads = 1, std::stop_token stop = {},
                    const std::set<std::string>& others = {});

}  // namespace checkpointd::images
