// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "plugins/cuda/backend.h"
#include "plugins/cuda/process.h"
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
    Result<void> quiesce(const std::vector<pid_t>& pids);
    Result<void> prepare(const std::vector<pid_t>& pids, Deadline deadline);
    Result<void> complete(Deadline deadline);
    Result<void> resume(const std::vector<pid_t>& pids, Deadline deadline);
    // What a dead job told the journal.
    static Result<void> undo(const std::string& record, Deadline deadline);

  private:
    Session(const ckptd_host& host, ckptd_purpose purpose, Settings settings)
        : host_(host), purpose_(purpose), settings_(std::move(settings)) {}
    Result<Answer> devices(bool with_memory, Deadline deadline);
    Result<bool> find_processes(const std::vector<pid_t>& pids, Deadline deadline);
    Result<void> check_here(Deadline deadline);
    Result<void> check_host_memory(const Answer& devices) const;
    Result<void> check_image(Deadline deadline);
    Result<void> write_down(const Process& process);
    Result<void> give_up_on(Process& process, Error why, Deadline deadline);

    const ckptd_host& host_;
    ckptd_purpose purpose_;
    Settings settings_;
    std::unique_ptr<Backend> backend_;
    std::vector<Process> processes_;
    std::map<pid_t, uint64_t> undo_;
    size_t wanted_processes_ = 0;  // of an image
    Answer before_;  // the devices, before a checkpoint took anything from them
};

}  // namespace checkpointd::cuda
