// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Which GPU of this machine takes the place of which one of the image. KFD shows the process that
// is restored the numbers of the machine where it was started, whatever the GPUs are called here.
#pragma once

#include <map>

#include "plugins/amdgpu/topology.h"

namespace checkpointd::amdgpu {

// What must fit. All but `numa` compare one property; switched off, it may be anything.
struct MapRules {
    bool firmware = true;       // fw_version, not older
    bool sdma_firmware = true;  // sdma_fw_version, not older
    bool caches = true;         // caches_count, not fewer
    bool gws = true;            // num_gws, not fewer
    bool vram_size = true;      // not less
    bool capability = true;     // the same
    bool numa = true;  // GPUs that hung at one CPU hang at one CPU again, and others at others
    std::map<uint32_t, uint32_t>
        wanted;  // pairs that the administrator named: gpu_id there, gpu_id here
};

// gpu_id of the image to gpu_id here, each once.
using GpuMap = std::map<uint32_t, uint32_t>;

// GPUs here that are as good as those of the image, in the same relation to each other: members of
// one hive stay in one; a link to a CPU is replaced by one that is as good (XGMI for PCIe, both
// directions for one). A GPU that has its number here keeps it where that is possible. kUnsupported
// names what does not fit, for each GPU.
Result<GpuMap> map_gpus(const Topology& image, const Topology& here, const MapRules& rules);

}  // namespace checkpointd::amdgpu
