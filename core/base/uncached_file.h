// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"

namespace checkpointd {

// A file that is read once, in large pieces: past the page cache (O_DIRECT), unless that has the piece already. What goes
// through the cache takes memory there, and on the way as much time of the processor as the disk takes. Any thread.
class UncachedFile {
  public:
    static constexpr size_t kPage = 4096;
    // How much memory read() needs for `size` bytes, whatever the offset: whole pages.
    static constexpr size_t room_for(size_t size) { return (size + 2 * kPage - 2) / kPage * kPage; }

    // `name` is relative to the directory, and no symbolic link.
    static Result<UncachedFile> open(int dir_fd, const std::string& name);

    // Returns where in `room` the contents lie; `room` begins at a page and is as large as the pages that they are on, which
    // room_for(size) is in any case. kBadImage: the file ends before.
    Result<std::byte*> read(uint64_t offset, size_t size, std::byte* room) const;

  private:
    UncachedFile(ScopedFd cached, ScopedFd direct, std::string name);
    bool is_cached(uint64_t offset, size_t size) const;

    ScopedFd cached_;
    ScopedFd direct_;  // none: the file system has no such way
    std::string name_;
};

}  // namespace checkpointd
