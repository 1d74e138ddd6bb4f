// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/base/io.h"

#include <cerrno>
#include <climits>
#include <fcntl.h>
#include <unistd.h>

namespace checkpointd {

Result<ScopedFd> open_at(int dir_fd, const std::string& path, int flags, unsigned mode) {
    ScopedFd fd(openat(dir_fd, path.c_str(), flags | O_CLOEXEC, mode));
    if (!fd)
        return fail_errno(path, "cannot open");
    return fd;
}

Result<std::string> read_fd(int fd, const std::string& object, size_t limit) {
    std::string out;
    char buffer[16384];
    for (;;) {
        ssize_t n = read(fd, buffer, sizeof(buffer));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail_errno(object, "cannot read");
        if (n == 0)
            return out;
        if (out.size() + static_cast<size_t>(n) > limit)
            return fail(ErrorKind::kBadInput, object, fmt::format("larger than {} bytes", limit));
        out.append(buffer, static_cast<size_t>(n));
    }
}

Result<std::string> read_file(int dir_fd, const std::string& path, size_t limit) {
    CKPT_ASSIGN(ScopedFd fd, open_at(dir_fd, path, O_RDONLY));
    return read_fd(fd.get(), path, limit);
}

Result<void> write_all(int fd, const void* data, size_t size, const std::string& object) {
    const char* next = static_cast<const char*>(data);
    while (size > 0) {
        ssize_t n = write(fd, next, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail_errno(object, "cannot write");
        next += n;
        size -= static_cast<size_t>(n);
    }
    return {};
}

Result<void> write_file(int dir_fd, const std::string& path, std::string_view content,
                        unsigned mode) {
    CKPT_ASSIGN(ScopedFd fd, open_at(dir_fd, path, O_WRONLY | O_CREAT | O_TRUNC, mode));
    return write_all(fd.get(), content.data(), content.size(), path);
}

Result<std::string> read_link(int dir_fd, const std::string& path) {
    char buffer[PATH_MAX + 1];
    ssize_t n = readlinkat(dir_fd, path.c_str(), buffer, sizeof(buffer));
    if (n < 0)
        return fail_errno(path, "cannot read the link");
    return std::string(buffer, static_cast<size_t>(n));
}

}  // namespace checkpointd
