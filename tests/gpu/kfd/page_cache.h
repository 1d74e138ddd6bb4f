// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <sys/types.h>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"

namespace checkpointd::kfd_emulation {

// The way of the emulated device to memory that programs have mapped: through the same pages of the
// kernel, by reading and writing the file system that this process serves. A process of its own
// does that: were it this one, and were it killed meanwhile, it would wait forever for its own
// answer. Any thread.
class PageCache {
  public:
    static constexpr size_t kMost = 1 << 20;  // bytes of one access

    // Before there are threads, and before the file system is mounted. `folder`: where it will be.
    static Result<PageCache> start(const std::string& folder);
    PageCache(PageCache&& other) noexcept;
    PageCache& operator=(PageCache&&) = delete;
    ~PageCache();

    bool access(uint32_t render_minor, uint64_t offset, void* data, size_t size, bool write);
    // What programs wrote reaches the server.
    bool flush(uint32_t render_minor);

  private:
    struct Request {
        enum class Kind { kRead, kWrite, kFlush } kind = Kind::kFlush;
        uint32_t render_minor = 0;
        uint64_t offset = 0;
        uint64_t size = 0;
    };

    PageCache(ScopedFd socket, std::byte* buffer) : socket_(std::move(socket)), buffer_(buffer) {}
    static void serve(int socket, std::byte* buffer, const std::string& folder);
    static bool answer(const Request& request, std::byte* buffer, int fd);
    bool ask(const Request& request);

    ScopedFd socket_;
    std::byte* buffer_;  // shared with the other process
    std::mutex mutex_;
};

}  // namespace checkpointd::kfd_emulation
