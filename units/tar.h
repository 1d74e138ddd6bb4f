// SPDX-License-Identifier: LGPL-2.1-or-later
//
// As much of POSIX tar (pax interchange format, POSIX.1-2001 "pax") as we write; read back strictly: what
// we would not have written is refused.
#pragma once

#include <cstddef>
#include <cstdint>
#include <ctime>
#include <map>
#include <optional>
#include <string>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"

namespace checkpointd {

enum class TarType : char { kFile = '0', kHardLink = '1', kLink = '2', kDirectory = '5', kFifo = '6' };

// A stretch of a sparse file that is no hole.
struct TarExtent {
    uint64_t offset = 0;
    uint64_t length = 0;
};

struct TarEntry {
    std::string path;  // absolute
    TarType type = TarType::kFile;
    std::string link;  // target of a symbolic link; path of the member that a hard link is the same as
    mode_t mode = 0;
    uid_t uid = 0;
    gid_t gid = 0;
    time_t mtime = 0;
    uint64_t size = 0;  // bytes of content that follow the header, padded to 512
    uint32_t mtime_nsec = 0;
    std::map<std::string, std::string> attributes;  // xattr(7), access control lists among them
    // Of a file with holes: what of it follows, and how long the file is ("GNU.sparse" 0.1).
    std::vector<TarExtent> extents;
    uint64_t sparse_size = 0;

    bool is_sparse() const { return sparse_size > 0; }
};

// Header blocks of one member. Content and tar_padding() zero bytes follow.
std::string tar_header(const TarEntry& entry);
size_t tar_padding(uint64_t size);
// The two zero blocks that end an archive.
std::string tar_end();

// The next member's header, or nothing at the end. The content of a kFile must be taken with tar_copy()
// before the next call. kBadImage for anything malformed.
Result<std::optional<TarEntry>> tar_next(int fd);
// A sparse file must be empty before.
Result<void> tar_copy(int in_fd, const TarEntry& entry, int out_fd);

}  // namespace checkpointd
