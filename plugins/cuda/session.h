// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "plugins/cuda/backend.h"
#include "plugins/cuda/checkpoint_preflight.h"
#include "plugins/cuda/device_file.h"
#include "plugins/cuda/process.h"
#include "plugins/cuda/restore_preflight.h"
#include "plugins/cuda/settings.h"
#include "plugins/plugin.h"

namespace checkpointd::cuda {

// The CUDA processes of one job. Members have the names of plugin.h's calls, and what stands there holds.
class Session {
  public:
    using Deadline = Backend::Deadline;

    // None where there is no NVIDIA device.
    static Result<std::unique_ptr<Session>> open(const ckptd_host& host, ckptd_purpose purpose);

    Result<bool> probe(const std::vector<pid_t>& pids, Deadline deadline);
    Result<void> quiesce(const ckptd_call& call, Deadline deadline);
    Result<void> prepare(const std::vector<pid_t>& pids, const ckptd_call& call, Deadline deadline);
    Result<void> transfer(const ckptd_call& call);
    Result<void> complete(Deadline deadline);
    Result<void> resume(const ckptd_call& call, const std::vector<pid_t>& pids, Deadline deadline);

  private:
    // Device memory of one process, on its way to or from its file.
    struct Stored {
        DeviceFile file;
        Deadline deadline;
    };
    Session(const ckptd_host& host, ckptd_purpose purpose, Settings settings)
        : host_(host), purpose_(purpose), settings_(std::move(settings)) {}
    Result<bool> find_processes(const std::vector<pid_t>& pids, Deadline deadline);
    Result<void> write_down(const Process& process, const char* way, const std::string& rest);
    Result<void> forget(pid_t pid, size_t but_last = 0);
    Result<void> map(Process& process, Deadline deadline);
    Result<void> take_off(Process& process, Deadline deadline);
    Result<void> start_copy(Process& process, std::vector<Region> regions, Deadline deadline);
    Deadline of_one(Deadline deadline) const;
    Result<void> in_time(const Process& process, Result<void> done, Deadline deadline);
    void tell_progress(const ckptd_call& call, pid_t pid, uint64_t bytes);
    Result<void> finish_copies(const ckptd_call& call, Deadline deadline);
    Result<Image> image_of(pid_t pid);
    Result<void> begin_restores(Deadline deadline);
    Result<void> find_restored(const std::vector<pid_t>& pids, Deadline deadline);
    Result<void> bring_back(Process& process, Deadline deadline);
    Result<void> resume(Process& process, Deadline deadline);
    void leave_or_end(const Process& process);
    Result<void> give_up_on(Process& process, Error why, Deadline deadline);

    const ckptd_host& host_;
    ckptd_purpose purpose_;
    Settings settings_;
    std::unique_ptr<Backend> backend_;
    std::vector<Process> processes_;
    std::map<pid_t, std::vector<uint64_t>> undo_;
    std::set<pid_t> late_;  // are not brought back, see in_time()
    CheckpointFacts facts_;
    RestoreFacts image_;
    std::map<pid_t, Stored> stored_;
    std::map<pid_t, uint64_t> moved_;  // bytes
};

}  // namespace checkpointd::cuda
