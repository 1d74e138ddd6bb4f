// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/device_store.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

namespace checkpointd::cuda {
namespace {

constexpr const char* kObject = "image of device memory";

// So that it neither takes the place of the same size in the page cache, nor waits for one lock per file. Not every
// file system lets us.
void go_around_page_cache(int fd) {
    const int flags = fcntl(fd, F_GETFL);
    if (flags >= 0 && (flags & O_ACCMODE) != O_RDONLY)
        (void)fcntl(fd, F_SETFL, flags | O_DIRECT);
}

}  // namespace

DeviceStore::DeviceStore(ScopedFd file, std::vector<Region> regions)
    : file_(std::move(file)), overflows_(!file_), regions_(std::move(regions)) {
    if (file_)
        go_around_page_cache(file_.get());
}

Result<void> DeviceStore::make_memory() {
    std::lock_guard lock(mutex_);
    if (!memory_)
        memory_.reset(memfd_create("cuda-memory", MFD_CLOEXEC));
    if (!memory_)
        return fail_errno(kObject, "cannot make room for it in memory");
    return {};
}

Result<void> DeviceStore::write(uint64_t at, void* data, size_t size) {
    const bool to_memory = overflows_;
    if (to_memory)
        CKPT_TRY(make_memory());
    const int fd = to_memory ? memory_.get() : file_.get();
    const size_t whole = aligned(size);
    std::memset(static_cast<char*>(data) + size, 0, whole - size);
    for (size_t done = 0; done < whole;) {
        const ssize_t wrote = pwrite(fd, static_cast<char*>(data) + done, whole - done, static_cast<off_t>(at + done));
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote <= 0)
            return fail_errno(kObject, "cannot be written", wrote == 0 ? ENOSPC : errno);
        done += static_cast<size_t>(wrote);
    }
    std::lock_guard lock(mutex_);
    written_.insert(at);
    if (to_memory)
        in_memory_.insert(at);
    return {};
}

bool DeviceStore::has(uint64_t at) const {
    std::lock_guard lock(mutex_);
    return written_.contains(at);
}

Result<void> DeviceStore::read(uint64_t at, void* data, size_t size) const {
    bool from_memory = false;
    {
        std::lock_guard lock(mutex_);
        from_memory = in_memory_.contains(at);
    }
    const int fd = from_memory ? memory_.get() : file_.get();
    // Whole pages, as O_DIRECT wants them; the last one of the file may be cut short.
    const size_t whole = aligned(size);
    size_t done = 0;
    while (done < size) {
        const ssize_t got = pread(fd, static_cast<char*>(data) + done, whole - done, static_cast<off_t>(at + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return fail_errno(kObject, "cannot be read");
        if (got == 0)
            return fail(ErrorKind::kBadImage, kObject, fmt::format("ends at byte {}", at + done));
        done += static_cast<size_t>(got);
    }
    return {};
}

}  // namespace checkpointd::cuda
