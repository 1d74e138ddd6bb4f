// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/gpu/kfd/page_cache.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cstring>
#include <map>
#include <utility>

namespace checkpointd::kfd_emulation {

Result<PageCache> PageCache::start(const std::string& folder) {
    void* buffer = mmap(nullptr, kMost, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int ends[2];
    if (buffer == MAP_FAILED || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
        return fail_errno("page cache", "start");
    ScopedFd ours(ends[0]);
    ScopedFd theirs(ends[1]);
    const pid_t child = fork();
    if (child < 0)
        return fail_errno("page cache", "fork");
    if (child == 0) {
        ours.reset();
        serve(theirs.get(), static_cast<std::byte*>(buffer), folder);
        _exit(0);
    }
    return PageCache(std::move(ours), static_cast<std::byte*>(buffer));
}

PageCache::PageCache(PageCache&& other) noexcept
    : socket_(std::move(other.socket_)), buffer_(std::exchange(other.buffer_, nullptr)) {}

PageCache::~PageCache() {
    if (buffer_ != nullptr)
        munmap(buffer_, kMost);
}

// Until the other end is closed.
void PageCache::serve(int socket, std::byte* buffer, const std::string& folder) {
    std::map<uint32_t, int> files;
    Request request;
    while (recv(socket, &request, sizeof request, 0) == sizeof request) {
        if (files.count(request.render_minor) == 0)
            files[request.render_minor] =
                open(fmt::format("{}/renderD{}", folder, request.render_minor).c_str(),
                     O_RDWR | O_CLOEXEC);
        const char good = answer(request, buffer, files[request.render_minor]) ? 1 : 0;
        if (send(socket, &good, 1, MSG_NOSIGNAL) != 1)
            return;
    }
}

bool PageCache::answer(const Request& request, std::byte* buffer, int fd) {
    const auto size = static_cast<ssize_t>(request.size);
    const auto offset = static_cast<off_t>(request.offset);
    if (request.kind == Request::Kind::kRead)
        return pread(fd, buffer, request.size, offset) == size;
    if (request.kind == Request::Kind::kWrite)
        return pwrite(fd, buffer, request.size, offset) == size;
    return fsync(fd) == 0;
}

bool PageCache::ask(const Request& request) {
    char good = 0;
    return send(socket_.get(), &request, sizeof request, MSG_NOSIGNAL) == sizeof request &&
           recv(socket_.get(), &good, 1, 0) == 1 && good == 1;
}

bool PageCache::access(uint32_t render_minor, uint64_t offset, void* data, size_t size,
                       bool write) {
    if (size > kMost)
        return false;
    const std::lock_guard lock(mutex_);
    if (write)
        std::memcpy(buffer_, data, size);
    const auto kind = write ? Request::Kind::kWrite : Request::Kind::kRead;
    if (!ask({kind, render_minor, offset, size}))
        return false;
    if (!write)
        std::memcpy(data, buffer_, size);
    return true;
}

bool PageCache::flush(uint32_t render_minor) {
    const std::lock_guard lock(mutex_);
    return ask({Request::Kind::kFlush, render_minor, 0, 0});
}

}  // namespace checkpointd::kfd_emulation
