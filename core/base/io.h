// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"

namespace checkpointd {

// openat(2) with O_CLOEXEC added. `object` names the file in the error.
Result<ScopedFd> open_at(int dir_fd, const std::string& path, int flags, unsigned mode = 0);

// The whole file as bytes; meant for /proc and configuration, refuses more than `limit` bytes.
Result<std::string> read_file(int dir_fd, const std::string& path, size_t limit = 64u << 20);
Result<std::string> read_fd(int fd, const std::string& object, size_t limit = 64u << 20);

// Writes all bytes, or fails. A short write is continued.
Result<void> write_all(int fd, const void* data, size_t size, const std::string& object);

// Creates or truncates `path` (mode 0600 unless told) and writes `content`.
Result<void> write_file(int dir_fd, const std::string& path, std::string_view content,
                        unsigned mode = 0600);

// readlinkat(2) as a string.
Result<std::string> read_link(int dir_fd, const std::string& path);

}  // namespace checkpointd
