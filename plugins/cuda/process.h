// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"
#include "plugins/cuda/backend.h"
#include "plugins/plugin.h"

namespace checkpointd::cuda {

// The file of an image that has the device memory of a process, and where. Without (-1): what the helper has of it.
struct Image {
    int fd = -1;  // borrowed
    std::vector<Region> regions;
};

// Who waits for a copy.
struct Watch {
    int cancel_fd = -1;
    std::function<void(uint64_t bytes)> progress;
};

// The driver's state of one process, and the way from each state to the next. After every call the driver is asked for
// the state: what the call itself said may be too early, too late or too good.
class Process {
  public:
    using Deadline = Backend::Deadline;

    // None if it uses no CUDA.
    static Result<std::optional<Process>> find(Backend& backend, pid_t pid, Deadline deadline);

    pid_t pid() const { return pid_; }
    Result<ProcessState> state(Deadline deadline) const;

    // What it has on each device; none where nobody tells.
    Result<std::optional<std::vector<Region>>> device_memory(Deadline deadline) const;

    // Running to locked: what it submits from here on waits. `timeout` is the driver's, which has no more than is left.
    Result<void> lock(std::chrono::milliseconds timeout, Deadline deadline);
    // Locked to checkpointed. The driver works in a thread of the process, which alone of all may run meanwhile.
    Result<void> checkpoint(const ckptd_host& host, Deadline deadline);

    // The same with storage of ours. Locked to checkpointing: its device memory, which the helper can copy from now on.
    // Until finish() its thread runs.
    Result<std::vector<Region>> map(const ckptd_host& host, Deadline deadline);
    // Begins to copy; what becomes of it is for copied() to say, which waits.
    Result<void> copy(const Image& image, Deadline deadline);
    Result<void> copied(Deadline deadline, const Watch& watch = {});
    // Checkpointing to checkpointed.
    Result<void> finish(Deadline deadline);

    // Checkpointed to restoring, for bring_back() to end: so several can be copied at a time. False, and nothing done, where
    // its device memory is its own.
    Result<bool> begin_restore(const ckptd_host* host, const std::vector<GpuPair>& device_map, const Image& image,
                               Deadline deadline);
    // From wherever it is to running. kTimeout: still under way. `image` has its device memory, where the helper does not.
    Result<void> bring_back(const ckptd_host* host, const std::vector<GpuPair>& device_map, const Image& image,
                            Deadline deadline);

    // Its device memory was mapped for somebody, so it has none of its own: no restore without it.
    void expect_contents() { lacks_contents_ = true; }

    // Whether the driver may hold anything of it.
    bool is_touched() const { return touched_; }

  private:
    Process(Backend& backend, pid_t pid, pid_t thread) : backend_(&backend), pid_(pid), thread_(thread) {}
    Result<void> make(Operation operation, ProcessState wanted, uint32_t timeout_ms,
                      const std::vector<GpuPair>& pairs, Deadline deadline);
    Result<Answer> ask(const Request& request, Deadline deadline, int fd = -1) const;
    Result<int32_t> held(Deadline deadline) const;
    Result<void> rescue(Deadline deadline);
    Result<void> put_back(const ckptd_host* host, const std::vector<GpuPair>& device_map, const Image& image, Deadline deadline);
    Result<void> lead_back(const ckptd_host* host, const std::vector<GpuPair>& device_map, const Image& image, Deadline deadline);
    Result<void> end_restore(const Image& image, Deadline deadline);
    Result<ProcessState> settled(Deadline deadline);
    Result<void> release_thread(const ckptd_host* host);
    Result<void> hold_thread(Deadline deadline);
    Result<void> hold_after(Result<void> done, Deadline deadline);

    Backend* backend_;
    pid_t pid_;
    pid_t thread_;
    std::vector<Region> regions_;  // of the last call that mapped
    bool touched_ = false;
    bool has_late_call_ = false;   // one that nobody waited for to its end
    bool lacks_contents_ = false;  // see expect_contents()
};

}  // namespace checkpointd::cuda
