// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/gpu/kfd/copy_engine.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <thread>

namespace checkpointd::kfd_emulation {

namespace {

constexpr const char* kObject = "emulated copy engine";

}  // namespace

CopyQueue::Clock::time_point CopyQueue::enter(uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    bytes_ += bytes;
    const auto now = Clock::now();
    if (bytes_per_second_ == 0)
        return now;
    const auto takes = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(
        static_cast<double>(bytes) / static_cast<double>(bytes_per_second_)));
    busy_ += takes;
    free_at_ = std::max(now, free_at_) + takes;
    return free_at_;
}

uint64_t CopyQueue::bytes() const {
    const std::lock_guard lock(mutex_);
    return bytes_;
}

CopyQueue::Clock::duration CopyQueue::busy() const {
    const std::lock_guard lock(mutex_);
    return busy_;
}

EmulatedEngine::~EmulatedEngine() {
    if (!pending_.empty())
        std::this_thread::sleep_until(pending_.back().end);
    for (const auto& [id, buffer] : buffers_)
        close(buffer.fd);
}

Result<void> EmulatedEngine::pin(std::byte* memory, uint64_t size) {
    const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    if (reinterpret_cast<uintptr_t>(memory) % page != 0 || size % page != 0 || size == 0)
        return fail(ErrorKind::kInternal, kObject, "pin whole pages");
    pinned_[memory] = size;
    return {};
}

Result<uint64_t> EmulatedEngine::attach(int dmabuf_fd, uint64_t size) {
    const int fd = fcntl(dmabuf_fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return fail_errno(kObject, fmt::format("attach descriptor {}", dmabuf_fd));
    buffers_[next_buffer_] = {fd, size};
    return next_buffer_++;
}

Result<void> EmulatedEngine::detach(uint64_t buffer) {
    const auto used = [&](const Pending& one) { return one.copy.buffer == buffer; };
    const auto found = buffers_.find(buffer);
    if (found == buffers_.end() || std::any_of(pending_.begin(), pending_.end(), used))
        return fail(ErrorKind::kInternal, kObject, "detach a buffer that is unknown or in use");
    close(found->second.fd);
    buffers_.erase(found);
    return {};
}

bool EmulatedEngine::is_pinned(const std::byte* memory, uint64_t size) const {
    auto next = pinned_.upper_bound(memory);
    if (next == pinned_.begin())
        return false;
    --next;
    return memory + size <= next->first + next->second;
}

Result<uint64_t> EmulatedEngine::start(const amdgpu::Copy& copy) {
    const auto found = buffers_.find(copy.buffer);
    if (found == buffers_.end() || copy.size == 0 || copy.offset + copy.size > found->second.size)
        return fail(ErrorKind::kInternal, kObject, "a copy outside of what is attached");
    if (!is_pinned(copy.host, copy.size))
        return fail(ErrorKind::kInternal, kObject, "a copy with host memory that is not pinned");
    pending_.push_back({next_fence_, copy, options_.queue->enter(copy.size)});
    return next_fence_++;
}

// Earlier copies have ended too, waited for or not.
Result<void> EmulatedEngine::wait(uint64_t fence, Deadline deadline) {
    if (fence >= next_fence_)
        return fail(ErrorKind::kInternal, kObject, "wait for a copy that was not started");
    while (!pending_.empty() && pending_.front().fence <= fence) {
        if (pending_.front().end > deadline) {
            std::this_thread::sleep_until(deadline);
            return fail(ErrorKind::kTimeout, kObject, "the copy has not ended in time");
        }
        std::this_thread::sleep_until(pending_.front().end);
        const Pending ended = pending_.front();
        pending_.pop_front();
        if (auto outcome = finish(ended); !outcome)
            failed_.emplace(ended.fence, std::move(outcome).error());
    }
    const auto failed = failed_.find(fence);
    if (failed == failed_.end())
        return {};
    Error error = std::move(failed->second);
    failed_.erase(failed);
    return tl::unexpected(std::move(error));
}

Result<void> EmulatedEngine::finish(const Pending& pending) {
    const amdgpu::Copy& copy = pending.copy;
    const bool to_device = copy.direction == amdgpu::Direction::kToDevice;
    const int error = options_.fault ? options_.fault(to_device ? "copy-to" : "copy-from") : 0;
    if (error != 0)
        return fail_errno(kObject, "the copy failed", error);
    const int fd = buffers_[copy.buffer].fd;
    const uint64_t end = copy.offset + copy.size;
    if (!options_.sampled)
        return move(copy, fd, copy.offset, copy.size);
    for (uint64_t at = (copy.offset + kSampleStep - 1) / kSampleStep * kSampleStep; at < end;
         at += kSampleStep)
        CKPT_TRY(move(copy, fd, at, std::min(kSampleSize, end - at)));
    return {};
}

// `at`: in the buffer object. A part of it is an error too: of the file system, in the middle of
// one large request.
Result<void> EmulatedEngine::move(const amdgpu::Copy& copy, int fd, uint64_t at, uint64_t size) {
    std::byte* host = copy.host + (at - copy.offset);
    const auto offset = static_cast<off_t>(at);
    const bool to_device = copy.direction == amdgpu::Direction::kToDevice;
    const ssize_t moved =
        to_device ? pwrite(fd, host, size, offset) : pread(fd, host, size, offset);
    if (moved != static_cast<ssize_t>(size))
        return fail_errno(kObject, fmt::format("move {} bytes at {}", size, at),
                          moved >= 0 ? EIO : errno);
    return {};
}

}  // namespace checkpointd::kfd_emulation
