// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A copy engine for tests and benchmarks: "devices" are memory files, and copies take as long as a
// bandwidth says, without using a processor for it.
#pragma once

#include <sys/mman.h>
#include <unistd.h>
#include <atomic>
#include <deque>
#include <map>
#include <thread>
#include <vector>

#include "core/base/scoped_fd.h"
#include "plugins/amdgpu/kfd.h"

namespace checkpointd::amdgpu {

// One GPU, whichever process and engine uses it: copies of all wait for each other.
struct FakeGpu {
    double bytes_per_second = 0;  // 0: at once
    bool moves_data = true;       // false: only time passes
    int fails_at = 0;             // the call, from 1, that fails; 0: none
    bool hangs = false;           // copies never end
    std::atomic<int> calls = 0;
    std::atomic<int> attached = 0;
    std::atomic<int> engines = 0;
    std::atomic<int> under_way = 0;
    std::atomic<int> most_under_way = 0;
    std::atomic<int64_t> free_at_nanoseconds = 0;  // of steady_clock
};

class FakeEngine : public CopyEngine {
  public:
    explicit FakeEngine(FakeGpu& gpu) : gpu_(gpu) { ++gpu_.engines; }
    ~FakeEngine() override {
        gpu_.attached -= static_cast<int>(buffers_.size());
        --gpu_.engines;
    }

    Result<void> pin(std::byte* memory, uint64_t size) override {
        pinned_ = memory;
        pinned_size_ = size;
        return called("pin");
    }
    Result<uint64_t> attach(int dmabuf_fd, uint64_t) override {
        CKPT_TRY(called("attach"));
        buffers_[++last_] = ScopedFd(dup(dmabuf_fd));
        ++gpu_.attached;
        return last_;
    }
    Result<void> detach(uint64_t buffer) override {
        gpu_.attached -= static_cast<int>(buffers_.erase(buffer));
        return called("detach");
    }
    Result<uint64_t> start(const Copy& copy) override {
        CKPT_TRY(called("start"));
        if (copy.host < pinned_ || copy.host + copy.size > pinned_ + pinned_size_ ||
            !buffers_.contains(copy.buffer))
            return fail(ErrorKind::kInternal, "fake engine",
                        "a copy of memory that it does not know");
        const int under_way = ++gpu_.under_way;
        gpu_.most_under_way = std::max(gpu_.most_under_way.load(), under_way);
        copies_.push_back({copy, end_of(copy.size)});
        return ++started_;
    }
    Result<void> wait(uint64_t fence, Deadline deadline) override {
        CKPT_TRY(called("wait"));
        while (ended_ < fence)
            CKPT_TRY(end_one(deadline));
        return {};
    }

  private:
    struct UnderWay {
        Copy copy;
        Deadline end;
    };

    Result<void> called(const char* what) {
        if (++gpu_.calls == gpu_.fails_at)
            return fail(ErrorKind::kSystem, "fake engine",
                        fmt::format("{} was told to fail", what));
        return {};
    }

    Deadline end_of(uint64_t bytes) {
        if (gpu_.bytes_per_second == 0)
            return Deadline::clock::now();
        const auto span =
            static_cast<int64_t>(static_cast<double>(bytes) / gpu_.bytes_per_second * 1e9);
        int64_t before = gpu_.free_at_nanoseconds;
        int64_t after = 0;
        do {
            const int64_t now = Deadline::clock::now().time_since_epoch().count();
            after = std::max(now, before) + span;
        } while (!gpu_.free_at_nanoseconds.compare_exchange_weak(before, after));
        return Deadline(std::chrono::nanoseconds(after));
    }

    Result<void> end_one(Deadline deadline) {
        const UnderWay& first = copies_.front();
        if (gpu_.hangs || first.end > deadline) {
            std::this_thread::sleep_until(deadline);
            return fail(ErrorKind::kTimeout, "fake engine", "a copy does not end");
        }
        std::this_thread::sleep_until(first.end);
        if (gpu_.moves_data)
            CKPT_TRY(move(first.copy));
        copies_.pop_front();
        --gpu_.under_way;
        ++ended_;
        return {};
    }

    Result<void> move(const Copy& copy) {
        const int fd = buffers_.at(copy.buffer).get();
        const auto at = static_cast<off_t>(copy.offset);
        const ssize_t moved = copy.direction == Direction::kToDevice
                                  ? pwrite(fd, copy.host, copy.size, at)
                                  : pread(fd, copy.host, copy.size, at);
        if (moved != static_cast<ssize_t>(copy.size))
            return fail_errno("fake engine", "copy");
        return {};
    }

    FakeGpu& gpu_;
    std::byte* pinned_ = nullptr;
    uint64_t pinned_size_ = 0;
    std::map<uint64_t, ScopedFd> buffers_;
    std::deque<UnderWay> copies_;
    uint64_t last_ = 0;
    uint64_t started_ = 0;
    uint64_t ended_ = 0;
};

}  // namespace checkpointd::amdgpu
