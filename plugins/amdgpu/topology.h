// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The nodes (CPUs and GPUs) that KFD shows, and the links between them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/base/error.h"

namespace checkpointd::amdgpu {

enum LinkType : uint32_t {
    kPcieLink = 2,
    kXgmiLink = 11
};  // HSA_IOLINKTYPE of the thunk; others are of no interest

struct Link {
    uint32_t type = 0;
    uint32_t to_node = 0;
    bool operator==(const Link&) const = default;
};

// What nodes/N/properties says, under its names; sizes in their units. What a kernel does not say
// is 0.
struct Node {
    uint32_t id = 0;
    uint32_t gpu_id = 0;  // 0: a CPU
    uint64_t cpu_cores_count = 0;
    uint64_t simd_count = 0;
    uint64_t mem_banks_count = 0;
    uint64_t caches_count = 0;
    uint64_t io_links_count = 0;
    uint64_t max_waves_per_simd = 0;
    uint64_t lds_size_in_kb = 0;
    uint64_t gds_size_in_kb = 0;
    uint64_t num_gws = 0;
    uint64_t wave_front_size = 0;
    uint64_t array_count = 0;
    uint64_t simd_arrays_per_engine = 0;
    uint64_t cu_per_simd_array = 0;
    uint64_t simd_per_cu = 0;
    uint64_t max_slots_scratch_cu = 0;
    uint64_t vendor_id = 0;
    uint64_t device_id = 0;
    uint64_t domain = 0;
    uint64_t drm_render_minor = 0;
    uint64_t hive_id = 0;
    uint64_t num_sdma_engines = 0;
    uint64_t num_sdma_xgmi_engines = 0;
    uint64_t num_sdma_queues_per_engine = 0;
    uint64_t num_cp_queues = 0;
    uint64_t fw_version = 0;
    uint64_t capability = 0;
    uint64_t sdma_fw_version = 0;
    uint64_t vram_public = 0;  // of mem_banks: 1 where all of it can be mapped by the CPU
    uint64_t vram_size = 0;    // bytes
    std::vector<Link> links;

    bool is_gpu() const { return gpu_id != 0; }
    bool operator==(const Node&) const = default;
};

struct Topology {
    std::vector<Node> nodes;  // by ascending id

    size_t gpu_count() const;
    const Node* by_id(uint32_t id) const;
    const Node* by_gpu_id(uint32_t gpu_id) const;
    const Node* by_render_minor(uint32_t minor) const;
    // A link to a node that is not shown is none: a device cgroup may hide GPUs, and leave the
    // links to them.
    bool is_valid(const Link& link) const { return by_id(link.to_node) != nullptr; }
    bool has_link(uint32_t from, uint32_t type, uint32_t to) const;
    // GPUs (by gpu_id) that XGMI joins, in both directions; those that it joins to none are left
    // out.
    std::vector<std::vector<uint32_t>> hives() const;
};

// "NAME NUMBER" lines into the node; names that are not known are left out.
Result<void> parse_node_properties(const std::string& text, Node& node, const std::string& object);
// `root` as Kfd::topology_root() says. A node whose gpu_id or properties cannot be read is left
// out: that is how a device cgroup hides GPUs.
Result<Topology> read_topology(const std::string& root);

// The GPU as people know it: "GPU 0x1a2b".
std::string gpu_name(uint32_t gpu_id);

}  // namespace checkpointd::amdgpu
