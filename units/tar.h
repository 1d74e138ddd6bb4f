// SPDX-License-Identifier: LGPL-2.1-or-later
//
// As much of POSIX tar (pax interchange format, POSIX.1-2001 "pax") as we write; read back strictly: what
// we would not have written is refused.
#pragma once

#include <cstddef>
#include <cstdint>
#include <ctime>
#include <optional>
#include <string>
#include <sys/types.h>

#include "core/base/error.h"

namespace checkpointd {

enum class TarType : char { kFile = '0', kLink = '2', kDirectory = '5', kFifo = '6' };

struct TarEntry {
    std::string path;  // absolute
    TarType type = TarType::kFile;
    std::string link;  // target of a symbolic link
    mode_t mode = 0;
    uid_t uid = 0;
    gid_t gid = 0;
    time_t mtime = 0;
    uint64_t size = 0;  // bytes of content that follow the header, padded to 512
};

// Header blocks of one member. Content and tar_padding() zero bytes follow.
std::string tar_header(const TarEntry& entry);
size_t tar_padding(uint64_t size);
// The two zero blocks that end an archive.
std::string tar_end();

// The next member's header, or nothing at the end. The content of a kFile must be taken with tar_copy()
// before the next call. kBadImage for anything malformed.
Result<std::optional<TarEntry>> tar_next(int fd);
Result<void> tar_copy(int in_fd, const TarEntry& entry, int out_fd);

}  // namespace checkpointd
