// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/amdgpu/images.h"

#include <linux/kfd_ioctl.h>
#include <sys/stat.h>
#include <cstring>
#include <set>

#include "core/base/io.h"

namespace checkpointd::amdgpu {
namespace {

// What the kernel keeps of a process is some kilobytes for each queue.
constexpr size_t kMostBytes = 256u << 20;
// The kernel's kfd_criu_restore_bos() allocates so many of a bucket's size at once.
constexpr int kMostBuffers = 1 << 24;

tl::unexpected<Error> bad(const std::string& name, std::string message) {
    return fail(ErrorKind::kBadImage, name, std::move(message));
}

Result<void> write_message(const OpenImage& open, const std::string& name,
                           const google::protobuf::MessageLite& message) {
    CKPT_ASSIGN(ScopedFd file, open(name));
    std::string bytes;
    if (!message.SerializeToString(&bytes))
        return fail(ErrorKind::kInternal, name, "lacks a field");
    CKPT_TRY(write_image_header(file.get(), name, bytes.size()));
    return write_all(file.get(), bytes.data(), bytes.size(), name);
}

template <typename Message>
Result<std::optional<Message>> read_message(const OpenImage& open, const std::string& name) {
    CKPT_ASSIGN(ScopedFd file, open(name));
    if (!file)
        return std::optional<Message>();
    CKPT_ASSIGN(const std::string bytes, read_fd(file.get(), name, kMostBytes));
    uint64_t size = 0;
    if (bytes.size() < kImageHeader)
        return bad(name, "is too short");
    std::memcpy(&size, bytes.data(), sizeof(size));
    Message message;
    if (size != bytes.size() - kImageHeader ||
        !message.ParseFromArray(bytes.data() + kImageHeader, static_cast<int>(size)))
        return bad(name, "is damaged");
    return std::optional<Message>(std::move(message));
}

Result<void> check_buffer(const pb::Buffer& buffer, const std::set<uint32_t>& gpus, uint64_t& total,
                          const std::string& name) {
    if (!gpus.contains(buffer.gpu_id()))
        return bad(name, fmt::format("has a buffer on {}, which it does not describe",
                                     gpu_name(buffer.gpu_id())));
    if (buffer.size() == 0 || buffer.size() > INT64_MAX - kImageHeader - total)
        return bad(name, fmt::format("has a buffer of {} bytes", buffer.size()));
    total += buffer.size();
    return {};
}

Result<void> check_process(const pb::Process& process, const std::string& name) {
    std::set<uint32_t> gpus;
    std::set<uint32_t> nodes;
    for (const pb::Device& device : process.devices()) {
        if (!nodes.insert(device.node_id()).second ||
            (device.gpu_id() != 0 && !gpus.insert(device.gpu_id()).second))
            return bad(name, fmt::format("describes node {} twice", device.node_id()));
    }
    if (gpus.size() != process.gpu_count() ||
        nodes.size() != uint64_t{process.gpu_count()} + process.cpu_count())
        return bad(name, "describes other devices than it counts");
    if (process.buffers_size() > kMostBuffers ||
        process.buffer_count() != static_cast<uint64_t>(process.buffers_size()))
        return bad(name, "lists other buffers than it counts");
    uint64_t total = 0;
    for (const pb::Buffer& buffer : process.buffers())
        CKPT_TRY(check_buffer(buffer, gpus, total, name));
    return {};
}

// One property in both worlds.
struct Field {
    uint64_t Node::*node;
    void (pb::Device::*set)(uint32_t);
    uint32_t (pb::Device::*get)() const;
};

constexpr Field kFields[] = {
    {&Node::cpu_cores_count, &pb::Device::set_cpu_cores_count, &pb::Device::cpu_cores_count},
    {&Node::simd_count, &pb::Device::set_simd_count, &pb::Device::simd_count},
    {&Node::mem_banks_count, &pb::Device::set_mem_banks_count, &pb::Device::mem_banks_count},
    {&Node::caches_count, &pb::Device::set_caches_count, &pb::Device::caches_count},
    {&Node::io_links_count, &pb::Device::set_io_links_count, &pb::Device::io_links_count},
    {&Node::max_waves_per_simd, &pb::Device::set_max_waves_per_simd,
     &pb::Device::max_waves_per_simd},
    {&Node::lds_size_in_kb, &pb::Device::set_lds_size_in_kb, &pb::Device::lds_size_in_kb},
    {&Node::gds_size_in_kb, &pb::Device::set_gds_size_in_kb, &pb::Device::gds_size_in_kb},
    {&Node::num_gws, &pb::Device::set_num_gws, &pb::Device::num_gws},
    {&Node::wave_front_size, &pb::Device::set_wave_front_size, &pb::Device::wave_front_size},
    {&Node::array_count, &pb::Device::set_array_count, &pb::Device::array_count},
    {&Node::simd_arrays_per_engine, &pb::Device::set_simd_arrays_per_engine,
     &pb::Device::simd_arrays_per_engine},
    {&Node::cu_per_simd_array, &pb::Device::set_cu_per_simd_array, &pb::Device::cu_per_simd_array},
    {&Node::simd_per_cu, &pb::Device::set_simd_per_cu, &pb::Device::simd_per_cu},
    {&Node::max_slots_scratch_cu, &pb::Device::set_max_slots_scratch_cu,
     &pb::Device::max_slots_scratch_cu},
    {&Node::vendor_id, &pb::Device::set_vendor_id, &pb::Device::vendor_id},
    {&Node::device_id, &pb::Device::set_device_id, &pb::Device::device_id},
    {&Node::domain, &pb::Device::set_domain, &pb::Device::domain},
    {&Node::drm_render_minor, &pb::Device::set_drm_render_minor, &pb::Device::drm_render_minor},
    {&Node::num_sdma_engines, &pb::Device::set_num_sdma_engines, &pb::Device::num_sdma_engines},
    {&Node::num_sdma_xgmi_engines, &pb::Device::set_num_sdma_xgmi_engines,
     &pb::Device::num_sdma_xgmi_engines},
    {&Node::num_sdma_queues_per_engine, &pb::Device::set_num_sdma_queues_per_engine,
     &pb::Device::num_sdma_queues_per_engine},
    {&Node::num_cp_queues, &pb::Device::set_num_cp_queues, &pb::Device::num_cp_queues},
    {&Node::fw_version, &pb::Device::set_fw_version, &pb::Device::fw_version},
    {&Node::capability, &pb::Device::set_capability, &pb::Device::capability},
    {&Node::sdma_fw_version, &pb::Device::set_sdma_fw_version, &pb::Device::sdma_fw_version},
    {&Node::vram_public, &pb::Device::set_vram_public, &pb::Device::vram_public},
};

// What CRIU's plugin writes: of a CPU the cores, of a GPU all but the size of its global data
// share. What is not written is 0.
bool is_written(const Node& node, const Field& field) {
    return node.is_gpu() ? field.node != &Node::gds_size_in_kb
                         : field.node == &Node::cpu_cores_count;
}

void put_node(const Topology& here, const Node& node, pb::Device& out) {
    out.set_node_id(node.id);
    for (const Field& field : kFields)
        (out.*field.set)(is_written(node, field) ? static_cast<uint32_t>(node.*field.node) : 0);
    out.set_hive_id(node.hive_id);
    out.set_vram_size(node.vram_size);
    for (const Link& link : node.links) {
        if (!here.is_valid(link))
            continue;
        pb::DeviceLink& added = *out.add_links();
        added.set_type(link.type);
        added.set_to_node(link.to_node);
    }
}

}  // namespace

std::string kfd_image_name(uint32_t id) {
    return fmt::format("amdgpu-kfd-{}.img", id);
}
std::string render_image_name(uint32_t id) {
    return fmt::format("amdgpu-renderD-{}.img", id);
}
std::string pages_image_name(uint32_t id, uint32_t gpu_id) {
    return fmt::format("amdgpu-pages-{}-{:04x}.img", id, gpu_id);
}

bool has_contents(uint32_t alloc_flags) {
    return (alloc_flags & (KFD_IOC_ALLOC_MEM_FLAGS_VRAM | KFD_IOC_ALLOC_MEM_FLAGS_GTT)) != 0;
}

Result<void> write_image_header(int fd, const std::string& name, uint64_t size) {
    return write_all(fd, &size, sizeof(size), name);
}

Result<void> check_image_size(int fd, const std::string& name, uint64_t size) {
    struct stat status {};
    uint64_t written = 0;
    if (fstat(fd, &status) != 0 || pread(fd, &written, sizeof(written), 0) < 0)
        return fail_errno(name, "cannot be read");
    if (written != size || static_cast<uint64_t>(status.st_size) != size + kImageHeader)
        return bad(name,
                   fmt::format("should hold {} bytes of buffers, and holds {}", size, written));
    return {};
}

Result<void> write_process(const OpenImage& open, uint32_t id, const pb::Process& process) {
    return write_message(open, kfd_image_name(id), process);
}

Result<std::optional<pb::Process>> read_process(const OpenImage& open, uint32_t id) {
    const std::string name = kfd_image_name(id);
    CKPT_ASSIGN(auto process, read_message<pb::Process>(open, name));
    if (process)
        CKPT_TRY(check_process(*process, name));
    return process;
}

Result<void> write_render_node(const OpenImage& open, uint32_t id, const pb::RenderNode& node) {
    return write_message(open, render_image_name(id), node);
}

Result<std::optional<pb::RenderNode>> read_render_node(const OpenImage& open, uint32_t id) {
    return read_message<pb::RenderNode>(open, render_image_name(id));
}

void put_topology(const Topology& here, const std::map<uint32_t, uint32_t>& names,
                  pb::Process& out) {
    uint32_t gpus = 0;
    uint32_t cpus = 0;
    for (const Node& node : here.nodes) {
        if (node.is_gpu() && !names.contains(node.gpu_id))
            continue;
        pb::Device& device = *out.add_devices();
        put_node(here, node, device);
        device.set_gpu_id(node.is_gpu() ? names.at(node.gpu_id) : 0);
        ++(node.is_gpu() ? gpus : cpus);
    }
    out.set_gpu_count(gpus);
    out.set_cpu_count(cpus);
}

Topology topology_of(const pb::Process& process) {
    Topology topology;
    for (const pb::Device& device : process.devices()) {
        Node& node = topology.nodes.emplace_back();
        node.id = device.node_id();
        node.gpu_id = device.gpu_id();
        for (const Field& field : kFields)
            node.*field.node = (device.*field.get)();
        node.hive_id = device.hive_id();
        node.vram_size = device.vram_size();
        for (const pb::DeviceLink& link : device.links())
            node.links.push_back({link.type(), link.to_node()});
    }
    return topology;
}

}  // namespace checkpointd::amdgpu
