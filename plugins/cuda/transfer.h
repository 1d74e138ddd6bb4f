// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "plugins/cuda/device_store.h"
#include "plugins/cuda/storage_calls.h"

namespace checkpointd::cuda {

// Device memory of another process, as the driver shows it to this one.
struct Mapping {
    void* context;
    void* stream;
    uint64_t pointer;
    Region region;  // where it is in the store
};

// Copies all mappings to a store, or back, in threads of its own: of each device two streams with two buffers each, so
// that one piece is on the bus while another is on its way to or from the file.
class Transfer {
  public:
    enum class Direction { kOut, kIn };

    // Borrowed until it ends. Out: what the store has already is left out.
    Transfer(const StorageCalls& calls, std::vector<Mapping> mappings, DeviceStore& store, Direction direction);
    Transfer(const Transfer&) = delete;
    Transfer& operator=(const Transfer&) = delete;
    ~Transfer();  // stops it, and waits

    // False while it goes on.
    bool wait(std::chrono::milliseconds time);
    // Between two pieces.
    void stop() { stopping_ = true; }
    uint64_t bytes() const { return bytes_; }
    Direction direction() const { return direction_; }
    // Once wait() said true: nothing was left out. Otherwise code and error say why, unless it was stopped.
    bool is_whole() const { return is_whole_; }
    int code() const { return code_; }
    const Error& error() const { return error_; }

  private:
    class Lane;
    struct Job {
        explicit Job(Mapping target) : mapping(target) {}
        Mapping mapping;
        std::atomic<uint64_t> next = 0;
        size_t piece = 0;
    };
    void run_lane(Job& job);
    std::optional<uint64_t> next_piece(Job& job);
    void lane_ended();
    void fail_with(int code, Error error);

    const StorageCalls& calls_;
    DeviceStore& store_;
    Direction direction_;
    std::atomic<bool> stopping_ = false;
    std::atomic<uint64_t> bytes_ = 0;
    std::mutex mutex_;
    std::condition_variable ended_;
    size_t running_ = 0;
    bool is_whole_ = true;
    int code_ = kSuccess;
    Error error_;
    std::vector<std::unique_ptr<Job>> jobs_;
    std::vector<std::jthread> threads_;
};

}  // namespace checkpointd::cuda
