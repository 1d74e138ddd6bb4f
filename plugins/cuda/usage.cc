// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/usage.h"

#include <algorithm>

#include "plugins/cuda/devices.h"
#include "plugins/cuda/preflight.h"

namespace checkpointd::cuda {

Result<void> Usage::measure(const Process& process, Backend::Deadline deadline) {
    CKPT_ASSIGN(had_[process.pid()], process.device_memory(soon(deadline)));
    return {};
}

uint64_t Usage::bytes_of(pid_t pid) const {
    const auto found = had_.find(pid);
    return found != had_.end() && found->second ? size_of(*found->second) : taken_bytes(devices_);
}

std::vector<Region> Usage::known() const {
    std::vector<Region> all;
    for (const auto& [pid, had] : had_)
        if (had)
            all.insert(all.end(), had->begin(), had->end());
    return all;
}

bool Usage::is_all_known() const {
    return std::all_of(had_.begin(), had_.end(), [](const auto& one) { return one.second.has_value(); });
}

std::vector<Error> Usage::check_host_memory() const {
    std::vector<Staging> processes;
    for (const auto& [pid, had] : had_)
        processes.push_back({pid, bytes_of(pid)});
    return check_staging(processes, taken_bytes(devices_));
}

}  // namespace checkpointd::cuda
