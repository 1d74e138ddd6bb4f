// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/amdgpu/topology.h"

#include <fcntl.h>
#include <algorithm>
#include <charconv>
#include <filesystem>
#include <functional>
#include <set>
#include <string_view>

#include "core/base/io.h"

namespace checkpointd::amdgpu {
namespace {

using Properties = std::function<void(std::string_view name, uint64_t value)>;

struct NamedField {
    std::string_view name;
    uint64_t Node::*field;
};

constexpr NamedField kNamedFields[] = {
    {"cpu_cores_count", &Node::cpu_cores_count},
    {"simd_count", &Node::simd_count},
    {"mem_banks_count", &Node::mem_banks_count},
    {"caches_count", &Node::caches_count},
    {"io_links_count", &Node::io_links_count},
    {"max_waves_per_simd", &Node::max_waves_per_simd},
    {"lds_size_in_kb", &Node::lds_size_in_kb},
    {"gds_size_in_kb", &Node::gds_size_in_kb},
    {"num_gws", &Node::num_gws},
    {"wave_front_size", &Node::wave_front_size},
    {"array_count", &Node::array_count},
    {"simd_arrays_per_engine", &Node::simd_arrays_per_engine},
    {"cu_per_simd_array", &Node::cu_per_simd_array},
    {"simd_per_cu", &Node::simd_per_cu},
    {"max_slots_scratch_cu", &Node::max_slots_scratch_cu},
    {"vendor_id", &Node::vendor_id},
    {"device_id", &Node::device_id},
    {"domain", &Node::domain},
    {"drm_render_minor", &Node::drm_render_minor},
    {"hive_id", &Node::hive_id},
    {"num_sdma_engines", &Node::num_sdma_engines},
    {"num_sdma_xgmi_engines", &Node::num_sdma_xgmi_engines},
    {"num_sdma_queues_per_engine", &Node::num_sdma_queues_per_engine},
    {"num_cp_queues", &Node::num_cp_queues},
    {"fw_version", &Node::fw_version},
    {"capability", &Node::capability},
    {"sdma_fw_version", &Node::sdma_fw_version},
};

// HSA_HEAPTYPE_FRAME_BUFFER_PUBLIC and ..._PRIVATE of the thunk.
constexpr uint64_t kPublicHeap = 1;
constexpr uint64_t kPrivateHeap = 2;

std::string_view take_word(std::string_view& line) {
    const size_t begin = line.find_first_not_of(" \t");
    line.remove_prefix(begin == std::string_view::npos ? line.size() : begin);
    const std::string_view word = line.substr(0, line.find_first_of(" \t"));
    line.remove_prefix(word.size());
    return word;
}

bool read_number(std::string_view word, uint64_t& out) {
    const auto end = std::from_chars(word.data(), word.data() + word.size(), out);
    return end.ec == std::errc() && end.ptr == word.data() + word.size();
}

Result<void> each_property(std::string_view text, const std::string& object,
                           const Properties& take) {
    while (!text.empty()) {
        std::string_view line = text.substr(0, text.find('\n'));
        text.remove_prefix(std::min(text.size(), line.size() + 1));
        const std::string whole(line);
        const std::string_view name = take_word(line);
        uint64_t value = 0;
        if (name.empty())
            continue;
        if (!read_number(take_word(line), value))
            return fail(ErrorKind::kSystem, object,
                        fmt::format("says '{}', which is no property", whole));
        take(name, value);
    }
    return {};
}

// Folders with a number for a name, ascending. None where there is no such folder.
std::vector<uint32_t> numbered_folders(const std::string& path) {
    std::set<uint32_t> numbers;
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(path, error)) {
        uint64_t number = 0;
        if (read_number(entry.path().filename().string(), number) && number < UINT32_MAX)
            numbers.insert(static_cast<uint32_t>(number));
    }
    return {numbers.begin(), numbers.end()};
}

Result<void> read_properties(const std::string& path, const Properties& take) {
    CKPT_ASSIGN(const std::string text, read_file(AT_FDCWD, path, 1 << 20));
    return each_property(text, path, take);
}

Result<void> read_vram(const std::string& folder, Node& node) {
    for (uint32_t bank : numbered_folders(folder + "/mem_banks")) {
        uint64_t heap = 0;
        uint64_t size = 0;
        CKPT_TRY(read_properties(fmt::format("{}/mem_banks/{}/properties", folder, bank),
                                 [&](std::string_view name, uint64_t value) {
                                     if (name == "heap_type")
                                         heap = value;
                                     if (name == "size_in_bytes")
                                         size = value;
                                 }));
        if ((heap != kPublicHeap && heap != kPrivateHeap) || size == 0)
            continue;
        node.vram_public = heap == kPublicHeap ? 1 : 0;
        node.vram_size = size;
        return {};
    }
    return fail(ErrorKind::kSystem, folder, "tells of no memory of the GPU");
}

Result<void> read_links(const std::string& folder, Node& node) {
    for (uint32_t number : numbered_folders(folder + "/io_links")) {
        Link link;
        CKPT_TRY(read_properties(fmt::format("{}/io_links/{}/properties", folder, number),
                                 [&](std::string_view name, uint64_t value) {
                                     if (name == "type")
                                         link.type = static_cast<uint32_t>(value);
                                     if (name == "node_to")
                                         link.to_node = static_cast<uint32_t>(value);
                                 }));
        if (link.type == kPcieLink || link.type == kXgmiLink)
            node.links.push_back(link);
    }
    return {};
}

// None: it is hidden from us.
Result<std::optional<Node>> read_node(const std::string& folder, uint32_t id) {
    Node node;
    node.id = id;
    auto gpu_id = read_file(AT_FDCWD, folder + "/gpu_id", 64);
    uint64_t number = 0;
    std::string_view text = gpu_id ? std::string_view(*gpu_id) : std::string_view();
    if (!read_number(text.substr(0, text.find('\n')), number) || number > UINT32_MAX)
        return std::optional<Node>();
    node.gpu_id = static_cast<uint32_t>(number);
    auto properties = read_file(AT_FDCWD, folder + "/properties", 1 << 20);
    if (!properties)
        return std::optional<Node>();
    CKPT_TRY(parse_node_properties(*properties, node, folder + "/properties"));
    if (node.is_gpu())
        CKPT_TRY(read_vram(folder, node));
    CKPT_TRY(read_links(folder, node));
    return std::optional<Node>(std::move(node));
}

}  // namespace

std::string gpu_name(uint32_t gpu_id) {
    return fmt::format("GPU {:#06x}", gpu_id);
}

Result<void> parse_node_properties(const std::string& text, Node& node, const std::string& object) {
    return each_property(text, object, [&](std::string_view name, uint64_t value) {
        for (const NamedField& field : kNamedFields)
            if (field.name ==
                name)  // images have 32 bits for all but one: what differs beyond could never fit
                node.*field.field = name == "hive_id" ? value : static_cast<uint32_t>(value);
    });
}

Result<Topology> read_topology(const std::string& root) {
    Topology topology;
    for (uint32_t id : numbered_folders(root + "/nodes")) {
        CKPT_ASSIGN(auto node, read_node(fmt::format("{}/nodes/{}", root, id), id));
        if (node)
            topology.nodes.push_back(std::move(*node));
    }
    return topology;
}

size_t Topology::gpu_count() const {
    return static_cast<size_t>(
        std::count_if(nodes.begin(), nodes.end(), [](const Node& node) { return node.is_gpu(); }));
}

const Node* Topology::by_id(uint32_t id) const {
    auto found =
        std::find_if(nodes.begin(), nodes.end(), [&](const Node& node) { return node.id == id; });
    return found == nodes.end() ? nullptr : &*found;
}

const Node* Topology::by_gpu_id(uint32_t gpu_id) const {
    auto found = std::find_if(nodes.begin(), nodes.end(), [&](const Node& node) {
        return node.is_gpu() && node.gpu_id == gpu_id;
    });
    return found == nodes.end() ? nullptr : &*found;
}

const Node* Topology::by_render_minor(uint32_t minor) const {
    auto found = std::find_if(nodes.begin(), nodes.end(), [&](const Node& node) {
        return node.is_gpu() && node.drm_render_minor == minor;
    });
    return found == nodes.end() ? nullptr : &*found;
}

bool Topology::has_link(uint32_t from, uint32_t type, uint32_t to) const {
    const Node* node = by_id(from);
    return node != nullptr &&
           std::find(node->links.begin(), node->links.end(), Link{type, to}) != node->links.end();
}

std::vector<std::vector<uint32_t>> Topology::hives() const {
    std::vector<std::vector<uint32_t>> hives;
    std::set<uint32_t> seen;
    for (const Node& first : nodes) {
        if (!first.is_gpu() || !seen.insert(first.id).second)
            continue;
        std::vector<const Node*> members{&first};
        for (size_t i = 0; i < members.size(); ++i)
            for (const Link& link : members[i]->links) {
                const Node* other = by_id(link.to_node);
                if (link.type == kXgmiLink && other != nullptr && other->is_gpu() &&
                    has_link(other->id, kXgmiLink, members[i]->id) && seen.insert(other->id).second)
                    members.push_back(other);
            }
        if (members.size() < 2)
            continue;
        hives.emplace_back();
        for (const Node* member : members)
            hives.back().push_back(member->gpu_id);
    }
    return hives;
}

}  // namespace checkpointd::amdgpu
