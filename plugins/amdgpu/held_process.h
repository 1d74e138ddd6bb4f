// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "plugins/amdgpu/kfd.h"

namespace checkpointd::amdgpu {

// A process whose queues a checkpoint has taken off the GPUs, and what the kernel told of it. Every
// call by the thread that traces the process.
class HeldProcess {
  public:
    // `file`: a copy of the process's own /dev/kfd.
    HeldProcess(const Kfd& kfd, ScopedFd file) : kfd_(kfd), file_(std::move(file)) {}
    HeldProcess(HeldProcess&&) = default;

    // PROCESS_INFO: from here on the queues do not run. Perhaps also where it failed: the answer
    // may have got lost.
    Result<void> pause();
    // CHECKPOINT.
    Result<void> save();
    // UNPAUSE. Nothing where the queues run.
    Result<void> unpause();

    // Of the owner, after pause(), as it counts itself: in its own PID namespace, see
    // criu_process_info() in kfd_chardev.c. The image has that one, as CRIU's has.
    pid_t own_number() const { return static_cast<pid_t>(args_.pid); }
    // The owner's PID on this machine; 0 until somebody has found it.
    pid_t pid() const { return pid_; }
    void set_pid(pid_t pid) { pid_ = pid; }
    int file() const { return file_.get(); }
    std::string name() const;

    const std::vector<kfd_criu_device_bucket>& devices() const { return devices_; }
    const std::vector<kfd_criu_bo_bucket>& buffers() const { return buffers_; }
    const std::string& private_data() const { return private_data_; }
    uint32_t object_count() const { return args_.num_objects; }
    // Of one of the buffers; none where it has no contents that could be copied. Taken over by the
    // caller.
    ScopedFd take_dmabuf(size_t buffer) { return std::move(dmabufs_[buffer]); }
    // gpu_id here to the one that the process knows.
    std::map<uint32_t, uint32_t> names_of_gpus() const;
    void drop_dmabufs() { dmabufs_.clear(); }

  private:
    Result<void> call(uint32_t operation, const char* name);

    const Kfd& kfd_;
    ScopedFd file_;
    kfd_ioctl_criu_args args_{};
    pid_t pid_ = 0;
    enum class Paused { kNo, kPerhaps, kYes } paused_ = Paused::kNo;
    std::vector<kfd_criu_device_bucket> devices_;
    std::vector<kfd_criu_bo_bucket> buffers_;
    std::vector<ScopedFd> dmabufs_;  // one for each buffer
    std::string private_data_;
};

}  // namespace checkpointd::amdgpu
