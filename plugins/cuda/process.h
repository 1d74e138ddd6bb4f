// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <optional>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"
#include "plugins/cuda/backend.h"
#include "plugins/plugin.h"

namespace checkpointd::cuda {

// The driver's state of one process, and the way from each state to the next. After every call the driver is asked for
// the state: what the call itself said may be too early, too late or too good.
class Process {
  public:
    using Deadline = Backend::Deadline;

    // None if it uses no CUDA.
    static Result<std::optional<Process>> find(Backend& backend, pid_t pid, Deadline deadline);

    pid_t pid() const { return pid_; }
    Result<ProcessState> state(Deadline deadline) const;

    // Running to locked: what it submits from here on waits.
    Result<void> lock(std::chrono::milliseconds timeout);
    // Locked to checkpointed. The driver works in a thread of the process, which alone of all may run meanwhile.
    Result<void> checkpoint(const ckptd_host& host, Deadline deadline);
    // From wherever it is to running. kTimeout: still under way.
    Result<void> bring_back(const ckptd_host* host, const std::vector<GpuPair>& device_map, Deadline deadline);

    // Whether the driver may hold anything of it.
    bool is_touched() const { return touched_; }

  private:
    Process(Backend& backend, pid_t pid, pid_t thread) : backend_(&backend), pid_(pid), thread_(thread) {}
    Result<void> make(Operation operation, ProcessState wanted, uint32_t timeout_ms,
                      const std::vector<GpuPair>& pairs, Deadline deadline);
    Result<void> release_thread(const ckptd_host* host);
    Result<void> hold_thread(const ckptd_host* host);
    Result<void> with_thread(const ckptd_host* host, Operation operation, ProcessState wanted,
                             const std::vector<GpuPair>& pairs, Deadline deadline);

    Backend* backend_;
    pid_t pid_;
    pid_t thread_;
    bool touched_ = false;
    bool is_loose_ = false;  // its thread runs, because a call did not end in time
};

}  // namespace checkpointd::cuda
