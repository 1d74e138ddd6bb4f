// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "tests/gpu/kfd/state.h"

namespace checkpointd::kfd_emulation {

// What /sys/class/kfd/kfd/topology says of a machine: CPUs first, then GPUs, each linked to the
// first CPU by PCIe and to those of its hive by XGMI.
struct Machine {
    struct Device {
        Gpu gpu;
        uint64_t hive = 0;            // 0: none
        uint32_t device_id = 0x740c;  // which chip
        uint32_t firmware = 68;
    };
    uint32_t cpus = 1;
    std::vector<Device> devices;

    // Of "GPU_ID:MINOR:MIB[:HIVE[:DEVICE_ID]]", decimal or with 0x.
    static Result<Machine> parse(const std::vector<std::string>& devices, uint32_t cpus);
    std::vector<Gpu> gpus() const;
};

// Files below the topology's folder, by their paths ("nodes/0/gpu_id").
std::map<std::string, std::string> topology_files(const Machine& machine);

// Makes them below an existing folder.
Result<void> write_topology(const Machine& machine, const std::string& folder);

}  // namespace checkpointd::kfd_emulation
