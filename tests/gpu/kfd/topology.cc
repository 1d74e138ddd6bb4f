// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/gpu/kfd/topology.h"

#include <fmt/format.h>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

namespace checkpointd::kfd_emulation {

namespace {

using Properties = std::vector<std::pair<std::string, uint64_t>>;

enum class LinkType { kPcie = 2, kXgmi = 11 };  // kfd_crat.h

std::string text(const Properties& properties) {
    std::string out;
    for (const auto& [name, value] : properties)
        out += fmt::format("{} {}\n", name, value);
    return out;
}

struct Link {
    LinkType type = LinkType::kPcie;
    size_t from = 0;
    size_t to = 0;
};

std::vector<Link> links_of(const Machine& machine) {
    std::vector<Link> links;
    for (size_t i = 0; i < machine.devices.size(); ++i) {
        const size_t node = machine.cpus + i;
        links.push_back({LinkType::kPcie, node, 0});
        links.push_back({LinkType::kPcie, 0, node});
        for (size_t j = 0; j < machine.devices.size(); ++j)
            if (j != i && machine.devices[i].hive != 0 &&
                machine.devices[i].hive == machine.devices[j].hive)
                links.push_back({LinkType::kXgmi, node, machine.cpus + j});
    }
    return links;
}

std::string link_text(const Link& link) {
    const uint64_t weight = link.type == LinkType::kXgmi ? 15 : 20;
    return text({{"type", static_cast<uint64_t>(link.type)},
                 {"version_major", 0},
                 {"version_minor", 0},
                 {"node_from", link.from},
                 {"node_to", link.to},
                 {"weight", weight},
                 {"min_latency", 0},
                 {"max_latency", 0},
                 {"min_bandwidth", 0},
                 {"max_bandwidth", 0},
                 {"recommended_transfer_size", 0},
                 {"flags", 1}});
}

std::string cpu_text(size_t links) {
    return text({{"cpu_cores_count", 8},
                 {"simd_count", 0},
                 {"mem_banks_count", 1},
                 {"caches_count", 0},
                 {"io_links_count", links},
                 {"p2p_links_count", 0},
                 {"cpu_core_id_base", 0},
                 {"simd_id_base", 0},
                 {"max_waves_per_simd", 0},
                 {"lds_size_in_kb", 0},
                 {"gds_size_in_kb", 0},
                 {"num_gws", 0},
                 {"wave_front_size", 0},
                 {"array_count", 0},
                 {"simd_arrays_per_engine", 0},
                 {"cu_per_simd_array", 0},
                 {"simd_per_cu", 0},
                 {"max_slots_scratch_cu", 0},
                 {"gfx_target_version", 0},
                 {"vendor_id", 0},
                 {"device_id", 0},
                 {"location_id", 0},
                 {"domain", 0},
                 {"drm_render_minor", 0},
                 {"hive_id", 0},
                 {"num_sdma_engines", 0},
                 {"num_sdma_xgmi_engines", 0},
                 {"num_sdma_queues_per_engine", 0},
                 {"num_cp_queues", 0},
                 {"max_engine_clk_ccompute", 2450}});
}

std::string gpu_text(const Machine::Device& device, size_t index, size_t links) {
    return text({{"cpu_cores_count", 0},
                 {"simd_count", 440},
                 {"mem_banks_count", 1},
                 {"caches_count", 0},
                 {"io_links_count", links},
                 {"p2p_links_count", 0},
                 {"cpu_core_id_base", 0},
                 {"simd_id_base", 2147487744 + index * 512},
                 {"max_waves_per_simd", 8},
                 {"lds_size_in_kb", 64},
                 {"gds_size_in_kb", 64},
                 {"num_gws", 64},
                 {"wave_front_size", 64},
                 {"array_count", 8},
                 {"simd_arrays_per_engine", 1},
                 {"cu_per_simd_array", 14},
                 {"simd_per_cu", 4},
                 {"max_slots_scratch_cu", 32},
                 {"gfx_target_version", 90010},
                 {"vendor_id", 4098},
                 {"device_id", device.device_id},
                 {"location_id", 49408 + index * 256},
                 {"domain", 0},
                 {"drm_render_minor", device.gpu.render_minor},
                 {"hive_id", device.hive},
                 {"num_sdma_engines", 2},
                 {"num_sdma_xgmi_engines", 3},
                 {"num_sdma_queues_per_engine", 8},
                 {"num_cp_queues", 24},
                 {"max_engine_clk_fcompute", 1700},
                 {"local_mem_size", 0},
                 {"fw_version", device.firmware},
                 {"capability", 673588864},
                 {"debug_prop", 1495},
                 {"sdma_fw_version", 8},
                 {"unique_id", 0x1000 + device.gpu.id},
                 {"num_xcc", 1},
                 {"max_engine_clk_ccompute", 2450}});
}

std::string bank_text(uint64_t heap, uint64_t bytes) {
    return text({{"heap_type", heap},
                 {"size_in_bytes", bytes},
                 {"flags", 0},
                 {"width", 64},
                 {"mem_clk_max", 1600}});
}

Result<Machine::Device> parse_device(const std::string& word) {
    std::vector<uint64_t> numbers;
    std::istringstream fields(word);
    for (std::string field; std::getline(fields, field, ':');)
        numbers.push_back(std::strtoull(field.c_str(), nullptr, 0));
    if (numbers.size() < 3 || numbers.size() > 5 || numbers[0] == 0 || numbers[1] == 0)
        return fail(ErrorKind::kBadInput, word, "is not GPU_ID:MINOR:MIB[:HIVE[:DEVICE_ID]]");
    Machine::Device device;
    device.gpu = {static_cast<uint32_t>(numbers[0]), static_cast<uint32_t>(numbers[1]),
                  numbers[2] << 20};
    if (numbers.size() > 3)
        device.hive = numbers[3];
    if (numbers.size() > 4)
        device.device_id = static_cast<uint32_t>(numbers[4]);
    return device;
}

}  // namespace

Result<Machine> Machine::parse(const std::vector<std::string>& devices, uint32_t cpus) {
    Machine machine;
    machine.cpus = cpus;
    for (const std::string& word : devices) {
        CKPT_ASSIGN(const Device device, parse_device(word));
        machine.devices.push_back(device);
    }
    return machine;
}

std::vector<Gpu> Machine::gpus() const {
    std::vector<Gpu> all;
    for (const Device& device : devices)
        all.push_back(device.gpu);
    return all;
}

std::map<std::string, std::string> topology_files(const Machine& machine) {
    std::map<std::string, std::string> files;
    files["generation_id"] = "2\n";
    files["system_properties"] =
        text({{"platform_oem", 0}, {"platform_id", 0}, {"platform_rev", 0}});
    std::map<size_t, size_t> counts;
    for (const Link& link : links_of(machine))
        files[fmt::format("nodes/{}/io_links/{}/properties", link.from, counts[link.from]++)] =
            link_text(link);
    for (size_t node = 0; node < machine.cpus + machine.devices.size(); ++node) {
        const std::string folder = fmt::format("nodes/{}/", node);
        const bool is_cpu = node < machine.cpus;
        const Machine::Device* device = is_cpu ? nullptr : &machine.devices[node - machine.cpus];
        files[folder + "gpu_id"] = fmt::format("{}\n", is_cpu ? 0 : device->gpu.id);
        files[folder + "name"] = is_cpu ? "\n" : "emulated\n";
        files[folder + "properties"] =
            is_cpu ? cpu_text(counts[node]) : gpu_text(*device, node - machine.cpus, counts[node]);
        files[folder + "mem_banks/0/properties"] =
            is_cpu ? bank_text(0, 1ull << 34) : bank_text(1, device->gpu.vram_bytes);
    }
    return files;
}

Result<void> write_topology(const Machine& machine, const std::string& folder) {
    for (const auto& [path, content] : topology_files(machine)) {
        const std::filesystem::path file = std::filesystem::path(folder) / path;
        std::error_code error;
        std::filesystem::create_directories(file.parent_path(), error);
        std::ofstream out(file);
        out << content;
        if (!out.flush())
            return fail(ErrorKind::kSystem, file.string(), "cannot be written");
    }
    return {};
}

}  // namespace checkpointd::kfd_emulation
