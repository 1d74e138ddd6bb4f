// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/base/uncached_file.h"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

namespace checkpointd {
namespace {

// At least `least` bytes, or false with errno; 0: the file ends before.
bool read_least(int fd, std::byte* at, size_t size, uint64_t offset, size_t least) {
    for (size_t done = 0; done < least;) {
        const ssize_t got = pread(fd, at + done, size - done, static_cast<off_t>(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            errno = got == 0 ? 0 : errno;
            return false;
        }
        done += static_cast<size_t>(got);
    }
    return true;
}

}  // namespace

UncachedFile::UncachedFile(ScopedFd cached, ScopedFd direct, std::string name)
    : cached_(std::move(cached)), direct_(std::move(direct)), name_(std::move(name)) {}

Result<UncachedFile> UncachedFile::open(int dir_fd, const std::string& name) {
    constexpr int kFlags = O_RDONLY | O_CLOEXEC | O_NOFOLLOW;
    ScopedFd cached(openat(dir_fd, name.c_str(), kFlags));
    if (!cached)
        return fail_errno(name, "cannot be opened");
    return UncachedFile(std::move(cached), ScopedFd(openat(dir_fd, name.c_str(), kFlags | O_DIRECT)), name);
}

// Half of it is enough: a direct read would fetch that a second time.
bool UncachedFile::is_cached(uint64_t offset, size_t size) const {
    void* window = mmap(nullptr, size, PROT_READ, MAP_SHARED, cached_.get(), static_cast<off_t>(offset));
    if (window == MAP_FAILED)
        return true;
    std::vector<unsigned char> pages((size + kPage - 1) / kPage);
    const bool known = mincore(window, size, pages.data()) == 0;
    munmap(window, size);
    const auto there = std::count_if(pages.begin(), pages.end(), [](unsigned char page) { return (page & 1) != 0; });
    return !known || 2 * static_cast<size_t>(there) >= pages.size();
}

Result<std::byte*> UncachedFile::read(uint64_t offset, size_t size, std::byte* room) const {
    const uint64_t first = offset / kPage * kPage;
    const size_t lead = static_cast<size_t>(offset - first);
    const size_t whole = (lead + size + kPage - 1) / kPage * kPage;
    const bool is_direct = direct_ && !is_cached(first, whole);
    // EINVAL: the disk has blocks that are larger than pages.
    if ((is_direct && read_least(direct_.get(), room, whole, first, lead + size)) ||
        ((!is_direct || errno == EINVAL) && read_least(cached_.get(), room + lead, size, offset, size)))
        return room + lead;
    if (errno != 0)
        return fail_errno(name_, fmt::format("cannot be read at offset {}", offset));
    return fail(ErrorKind::kBadImage, name_, fmt::format("ends before offset {}", offset + size));
}

}  // namespace checkpointd
