// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"
#include "plugins/cuda/process.h"

namespace checkpointd::cuda {

// What the processes of a checkpoint have on devices, as far as anybody tells.
class Usage {
  public:
    // `devices`: before anything was taken off them.
    explicit Usage(const Answer& devices = {}) : devices_(devices) {}

    Result<void> measure(const Process& process, Backend::Deadline deadline);
    void set(pid_t pid, const std::vector<Region>& regions) { had_[pid] = regions; }

    const Answer& devices() const { return devices_; }
    // Of a process of which nobody tells what it has, it may be all that is taken.
    uint64_t bytes_of(pid_t pid) const;
    // Of those processes of which it is known, each on each device; whether that is all of them.
    std::vector<Region> known() const;
    bool is_all_known() const;
    // What has no room for all of it: what the driver copies goes to memory of the processes first.
    std::vector<Error> check_host_memory() const;

  private:
    Answer devices_;
    std::map<pid_t, std::optional<std::vector<Region>>> had_;
};

}  // namespace checkpointd::cuda
