// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Contents of buffers between files and GPUs, for all processes of a job and all GPUs at once. Each
// GPU has a thread, a copy engine and staging memory of its own: while the engine copies one piece
// the next one is read (or the one before is written).
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "core/base/uncached_file.h"
#include "plugins/amdgpu/kfd.h"

namespace checkpointd::amdgpu {

// Reads a part of a file into memory that begins at a page and is as large as the pages that the part
// is on; returns where in it the part begins. Any thread.
using ReadContent =
    std::function<Result<std::byte*>(uint64_t offset, uint64_t size, std::byte* room)>;

// One buffer and its place in a file.
struct BufferTransfer {
    ScopedFd dmabuf;
    std::shared_ptr<const ScopedFd> file;  // that it goes to
    ReadContent read;                      // of the one that it comes from
    uint64_t file_offset = 0;
    uint64_t size = 0;
    std::string name;  // for errors: "pid 12, buffer at 0x7f…"
    std::function<void()>
        on_done;  // may be empty; in a thread of the pipeline, when its contents have arrived
};

struct TransferOptions {
    uint64_t staging_bytes = 64u << 20;  // of all GPUs together
    unsigned pieces = 4;   // that a GPU's staging memory is divided into; 1: nothing overlaps
    size_t gpu_count = 1;  // that staging memory is divided among
    std::chrono::milliseconds copy_timeout{30000};  // of one piece
    CopyEngine::Deadline deadline = CopyEngine::Deadline::max();
    int cancel_fd = -1;  // borrowed; readable: cancelled
    std::function<void(uint64_t done, uint64_t total)>
        progress;  // from any thread of the pipeline; may be empty
};

// The bytes of one piece, whole pages. At least 64 KiB, whatever the memory.
uint64_t piece_bytes(const TransferOptions& options);

class TransferPipeline {
  public:
    using OpenEngine = std::function<Result<std::unique_ptr<CopyEngine>>(uint32_t render_minor)>;

    TransferPipeline(Direction direction, TransferOptions options, OpenEngine open_engine);
    // What was not finished is cancelled.
    ~TransferPipeline();
    TransferPipeline(const TransferPipeline&) = delete;
    TransferPipeline& operator=(const TransferPipeline&) = delete;

    // Does not wait. What one GPU is given is copied in this order. Any thread.
    void add(uint32_t render_minor, BufferTransfer transfer);
    // For progress, as soon as it is known; else it is what was added so far.
    void expect(uint64_t bytes);
    // Nothing more will be added: waits for the end of all. The first failure is that of all; what
    // else was queued is dropped then. An engine whose copy does not end is never touched again,
    // nor is its staging memory.
    Result<void> finish();
    bool failed() const { return stop_; }

  private:
    class Lane;
    Lane& lane(uint32_t render_minor);
    void fail_all(Error error);
    void count(uint64_t bytes);
    Result<void> check() const;

    const Direction direction_;
    const TransferOptions options_;
    const OpenEngine open_engine_;
    std::atomic<bool> stop_ = false;
    std::atomic<uint64_t> done_ = 0;
    std::atomic<uint64_t> added_ = 0;
    std::atomic<uint64_t> expected_ = 0;
    std::mutex mutex_;  // of what follows
    std::map<uint32_t, std::unique_ptr<Lane>> lanes_;
    std::unique_ptr<Error> error_;
};

}  // namespace checkpointd::amdgpu
