// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Machines that tests make up.
#pragma once

#include <filesystem>
#include <fstream>

#include "plugins/amdgpu/topology.h"

namespace checkpointd::amdgpu {

inline Node cpu_node(uint32_t id) {
    Node node;
    node.id = id;
    node.cpu_cores_count = 64;
    node.mem_banks_count = 1;
    return node;
}

inline Node gpu_node(uint32_t id, uint32_t gpu_id) {
    Node node;
    node.id = id;
    node.gpu_id = gpu_id;
    node.vendor_id = 4098;
    node.device_id = 29759;
    node.simd_count = 416;
    node.mem_banks_count = 1;
    node.caches_count = 120;
    node.num_gws = 64;
    node.drm_render_minor = 128 + id;
    node.fw_version = 60;
    node.sdma_fw_version = 8;
    node.num_cp_queues = 24;
    node.vram_size = 1 << 30;
    return node;
}

// Links in both directions. io_links_count stays as it is: KFD counts the links to hidden nodes,
// too.
inline void join(Topology& topology, uint32_t one, uint32_t other, uint32_t type) {
    for (Node& node : topology.nodes) {
        if (node.id == one)
            node.links.push_back({type, other});
        if (node.id == other)
            node.links.push_back({type, one});
    }
}

// CPUs first, GPUs after them: GPU number i hangs at CPU i % cpus. Numbers (gpu_id) are
// first_gpu_id and up.
inline Topology machine(uint32_t cpus, uint32_t gpus, uint32_t first_gpu_id = 0x100) {
    Topology topology;
    for (uint32_t i = 0; i < cpus; ++i)
        topology.nodes.push_back(cpu_node(i));
    for (uint32_t i = 0; i < gpus; ++i)
        topology.nodes.push_back(gpu_node(cpus + i, first_gpu_id + i));
    for (uint32_t i = 0; cpus != 0 && i < gpus; ++i)
        join(topology, cpus + i, i % cpus, kPcieLink);
    return topology;
}

inline void write_properties(const std::filesystem::path& folder, const std::string& text) {
    std::filesystem::create_directories(folder);
    std::ofstream(folder / "properties") << text;
}

inline void write_node(const std::filesystem::path& folder, const Node& node) {
    write_properties(
        folder,
        fmt::format("cpu_cores_count {}\nsimd_count {}\nmem_banks_count {}\ncaches_count {}\n"
                    "num_gws {}\nvendor_id {}\ndevice_id {}\ndrm_render_minor {}\nfw_version {}\n"
                    "sdma_fw_version {}\nnum_cp_queues {}\nname_that_nobody_knows 7\n",
                    node.cpu_cores_count, node.simd_count, node.mem_banks_count, node.caches_count,
                    node.num_gws, node.vendor_id, node.device_id, node.drm_render_minor,
                    node.fw_version, node.sdma_fw_version, node.num_cp_queues));
    std::ofstream(folder / "gpu_id") << node.gpu_id << "\n";
    write_properties(folder / "mem_banks" / "0",
                     fmt::format("heap_type {}\nsize_in_bytes {}\n",
                                 node.is_gpu() ? 2 - node.vram_public : 0, node.vram_size));
    for (size_t i = 0; i < node.links.size(); ++i)
        write_properties(folder / "io_links" / std::to_string(i),
                         fmt::format("type {}\nnode_from {}\nnode_to {}\n", node.links[i].type,
                                     node.id, node.links[i].to_node));
}

// As /sys/class/kfd/kfd/topology.
inline void write_topology(const std::string& root, const Topology& topology) {
    for (const Node& node : topology.nodes)
        write_node(std::filesystem::path(root) / "nodes" / std::to_string(node.id), node);
}

}  // namespace checkpointd::amdgpu
