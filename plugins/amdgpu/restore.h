// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "plugins/amdgpu/images.h"
#include "plugins/amdgpu/restored_process.h"
#include "plugins/amdgpu/settings.h"
#include "plugins/amdgpu/transfer.h"
#include "plugins/plugin.h"

namespace checkpointd::amdgpu {

// A word for each process in memory that tasks and worker share: whether its buffers are filled.
// For the serial way, in which a task waits for that before it goes on.
class FilledFlags {
  public:
    FilledFlags() = default;
    FilledFlags(const FilledFlags&) = delete;
    FilledFlags& operator=(const FilledFlags&) = delete;
    ~FilledFlags();
    Result<void> make(size_t count);
    // In the worker. A failure wakes all.
    void fill(size_t index);
    void give_up();
    // In the task: 0, or -EIO. Async-signal-safe.
    int wait(size_t index) const noexcept;

  private:
    void set(size_t index, uint32_t value);
    std::atomic<uint32_t>* words_ = nullptr;
    size_t count_ = 0;
};

// The processes of one restore that used AMD GPUs. Members have the names of plugin.h's calls, and
// what stands there holds.
class Restore {
  public:
    Restore(const ckptd_host& host, const Kfd& kfd, Settings settings);

    Result<void> probe();
    Result<void> prepare();
    int restore_file(pid_t pid, uint32_t id) noexcept;
    int update_vma(pid_t pid, ckptd_vma* vma) noexcept;
    Result<void> transfer(const TransferOptions& options);
    Result<void> resume(const std::vector<pid_t>& pids);

  private:
    // From a task: descriptors of the contents `first` and following of process number `process`.
    struct Message {
        uint32_t process = 0;
        uint32_t first = 0;
    };
    struct RenderFile {
        uint32_t id;
        uint32_t minor;  // here
    };

    Result<std::vector<uint32_t>> image_ids() const;
    Result<void> read_image(uint32_t id, std::vector<Error>& blockers);
    Result<void> read_process_image(uint32_t id, const pb::Process& process);
    Result<void> read_render_image(uint32_t id, const pb::RenderNode& node);
    std::vector<Error> lacking_room() const;
    Result<void> check_pages(const RestoredProcess& process) const;
    ReadContent reader_of(std::string name) const;
    OpenImage open_image() const;
    int hand_over(size_t index) noexcept;
    Result<void> receive_all(const TransferOptions& options, TransferPipeline& pipeline);
    Result<bool> receive_one(const TransferOptions& options, TransferPipeline& pipeline);
    Result<void> add(const Message& message, std::vector<ScopedFd> dmabufs,
                     TransferPipeline& pipeline);
    void count_filled(size_t process);

    const ckptd_host& host_;
    const Kfd& kfd_;
    const Settings settings_;
    Topology here_;
    GpuMap map_;
    uint64_t shared_memory_size_ = 0;
    uint32_t shared_memory_magic_ = 0;
    std::vector<RestoredProcess> processes_;
    std::vector<RenderFile> render_files_;
    std::unique_ptr<TaskRenderNodes> nodes_;  // of the task
    RestoredProcess* current_ = nullptr;      // of the task
    FilledFlags filled_;
    std::vector<size_t> received_;                         // contents of each process
    std::unique_ptr<std::atomic<size_t>[]> filled_count_;  // likewise
};

}  // namespace checkpointd::amdgpu
