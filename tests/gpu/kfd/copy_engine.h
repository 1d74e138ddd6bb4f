// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>

#include "plugins/amdgpu/kfd.h"

namespace checkpointd::kfd_emulation {

// When the copies of one GPU end: one after the other, at its bandwidth, whoever started them. Any
// thread.
class CopyQueue {
  public:
    using Clock = std::chrono::steady_clock;

    explicit CopyQueue(uint64_t bytes_per_second)
        : bytes_per_second_(bytes_per_second) {}  // 0: at once
    // Takes its place behind what is under way.
    Clock::time_point enter(uint64_t bytes);
    uint64_t bytes() const;        // entered so far
    Clock::duration busy() const;  // how long that takes in all

  private:
    const uint64_t bytes_per_second_;
    mutable std::mutex mutex_;
    Clock::time_point free_at_{};
    uint64_t bytes_ = 0;
    Clock::duration busy_{};
};

// The copy engine of a GPU, over any descriptor that can be read and written at an offset. A copy
// waits by sleeping, and data are moved when it has ended and is waited for: host memory that is
// used again too early is seen.
class EmulatedEngine : public amdgpu::CopyEngine {
  public:
    struct Options {
        std::shared_ptr<CopyQueue> queue;  // of the GPU
        // Moves 64 bytes at the beginning of each 64 KiB of the buffer object, and nothing else:
        // for measuring what runs beside the copies, which take nothing from the processor then.
        bool sampled = false;
        // The error of a copy that is about to end; 0: none. Called with "copy-from" or "copy-to"
        // (the device).
        std::function<int(const char* name)> fault;
    };
    static constexpr uint64_t kSampleStep = 64 << 10;
    static constexpr uint64_t kSampleSize = 64;

    explicit EmulatedEngine(Options options) : options_(std::move(options)) {}
    ~EmulatedEngine() override;

    Result<void> pin(std::byte* memory, uint64_t size) override;
    Result<uint64_t> attach(int dmabuf_fd, uint64_t size) override;
    Result<void> detach(uint64_t buffer) override;
    Result<uint64_t> start(const amdgpu::Copy& copy) override;
    Result<void> wait(uint64_t fence, Deadline deadline) override;

  private:
    struct Buffer {
        int fd = -1;
        uint64_t size = 0;
    };
    struct Pending {
        uint64_t fence = 0;
        amdgpu::Copy copy;
        CopyQueue::Clock::time_point end;
    };

    bool is_pinned(const std::byte* memory, uint64_t size) const;
    Result<void> finish(const Pending& pending);
    Result<void> move(const amdgpu::Copy& copy, int fd, uint64_t at, uint64_t size);

    const Options options_;
    std::map<const std::byte*, uint64_t> pinned_;
    std::map<uint64_t, Buffer> buffers_;
    std::deque<Pending> pending_;
    std::map<uint64_t, Error> failed_;  // of fences that are not waited for yet
    uint64_t next_buffer_ = 1;
    uint64_t next_fence_ = 1;
};

}  // namespace checkpointd::kfd_emulation
