// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/amdgpu/restored_process.h"

#include <cerrno>
#include <cstring>

#include "plugins/amdgpu/descriptor_limit.h"
#include "plugins/amdgpu/images.h"

namespace checkpointd::amdgpu {
namespace {

// The last part of a path, without strrchr()'s cast.
const char* base_name(const char* path) {
    const char* base = path;
    for (const char* at = path; *at != '\0'; ++at)
        if (*at == '/')
            base = at + 1;
    return base;
}

// "renderD129" is 129; 0: it is none.
uint32_t minor_of(const char* name) {
    constexpr char kPrefix[] = "renderD";
    if (std::strncmp(name, kPrefix, sizeof(kPrefix) - 1) != 0)
        return 0;
    uint32_t number = 0;
    for (const char* at = name + sizeof(kPrefix) - 1; *at != '\0'; ++at) {
        if (*at < '0' || *at > '9' || number > 999)
            return 0;
        number = number * 10 + static_cast<uint32_t>(*at - '0');
    }
    return number;
}

}  // namespace

TaskRenderNodes::TaskRenderNodes(const Topology& here) {
    for (const Node& node : here.nodes)
        if (node.is_gpu())
            entries_.push_back({static_cast<uint32_t>(node.drm_render_minor), -1});
}

int TaskRenderNodes::open(const Kfd& kfd, uint32_t minor) noexcept {
    for (Entry& entry : entries_) {
        if (entry.minor != minor)
            continue;
        if (entry.fd < 0)
            entry.fd = kfd.open_render(minor);
        return entry.fd;
    }
    return -ENODEV;
}

Result<RestoredProcess> RestoredProcess::prepare(uint32_t id, const pb::Process& process,
                                                 const Topology& here, const GpuMap& map) {
    RestoredProcess made;
    made.id_ = id;
    made.pid_ = process.pid();
    made.object_count_ = process.object_count();
    made.private_data_ = process.private_data();
    if (made.private_data_.empty())
        return fail(ErrorKind::kBadImage, kfd_image_name(id), "has nothing of the kernel's");
    std::map<uint32_t, uint32_t> minors;
    for (const pb::Device& device : process.devices()) {
        if (device.gpu_id() == 0)
            continue;
        auto actual = map.find(device.gpu_id());
        const Node* node = actual == map.end() ? nullptr : here.by_gpu_id(actual->second);
        if (node == nullptr)
            return fail(ErrorKind::kUnsupported, gpu_name(device.gpu_id()),
                        "has no GPU here in its place");
        made.devices_.push_back({device.gpu_id(), node->gpu_id, KFD_INVALID_FD, 0});
        made.minors_.push_back(static_cast<uint32_t>(node->drm_render_minor));
        made.old_minors_.push_back(device.drm_render_minor());
        minors[device.gpu_id()] = made.minors_.back();
    }
    std::map<uint32_t, uint64_t> ends;
    made.buckets_.reserve(static_cast<size_t>(process.buffers_size()) +
                          1);  // the kernel wants an address
    for (const pb::Buffer& buffer : process.buffers())
        made.add_buffer(buffer, minors.at(buffer.gpu_id()), ends);
    return made;
}

void RestoredProcess::add_buffer(const pb::Buffer& buffer, uint32_t render_minor,
                                 std::map<uint32_t, uint64_t>& ends) {
    kfd_criu_bo_bucket& bucket = buckets_.emplace_back();
    bucket.addr = buffer.addr();
    bucket.size = buffer.size();
    bucket.offset = buffer.offset();
    bucket.gpu_id = buffer.gpu_id();
    bucket.alloc_flags = buffer.alloc_flags();
    bucket.dmabuf_fd = KFD_INVALID_FD;
    if (!has_contents(buffer.alloc_flags()))
        return;
    uint64_t& end = ends.try_emplace(buffer.gpu_id(), kImageHeader).first->second;
    contents_.push_back({buckets_.size() - 1, buffer.gpu_id(), render_minor, end, buffer.size()});
    end += buffer.size();
}

uint64_t RestoredProcess::content_bytes() const {
    uint64_t bytes = 0;
    for (const Content& content : contents_)
        bytes += content.size;
    return bytes;
}

// Doorbells, registers and the program's own memory take nothing of either.
void RestoredProcess::add_to(NeededRoom& room) const {
    for (const kfd_criu_device_bucket& device : devices_)
        for (const kfd_criu_bo_bucket& bucket : buckets_) {
            if (bucket.gpu_id != device.user_gpu_id)
                continue;
            if ((bucket.alloc_flags & KFD_IOC_ALLOC_MEM_FLAGS_VRAM) != 0)
                room.vram[device.actual_gpu_id] += bucket.size;
            else if ((bucket.alloc_flags & KFD_IOC_ALLOC_MEM_FLAGS_GTT) != 0)
                room.host += bucket.size;
        }
}

std::map<uint32_t, uint64_t> RestoredProcess::bytes_of_gpus() const {
    std::map<uint32_t, uint64_t> bytes;
    for (const Content& content : contents_)
        bytes[content.user_gpu] += content.size;
    return bytes;
}

std::string RestoredProcess::content_name(const Content& content) const {
    return fmt::format("{}, buffer at {:#x}", name(), buckets_[content.buffer].addr);
}

int RestoredProcess::restore(const Kfd& kfd, TaskRenderNodes& nodes) noexcept {
    raise_descriptor_limit();  // the program's own limit is set later
    kfd_fd_ = kfd.open_kfd();
    if (kfd_fd_ < 0)
        return kfd_fd_;
    for (size_t i = 0; i < devices_.size(); ++i) {
        const int node = nodes.open(kfd, minors_[i]);
        if (node < 0)
            return node;
        devices_[i].drm_fd = static_cast<uint32_t>(node);
    }
    kfd_ioctl_criu_args args{};
    args.op = KFD_CRIU_OP_RESTORE;
    args.devices = reinterpret_cast<uint64_t>(devices_.data());
    args.num_devices = static_cast<uint32_t>(devices_.size());
    args.bos = reinterpret_cast<uint64_t>(buckets_.data());
    args.num_bos = static_cast<uint32_t>(buckets_.size());
    args.priv_data = reinterpret_cast<uint64_t>(private_data_.data());
    args.priv_data_size = private_data_.size();
    args.num_objects = object_count_;
    const int code = kfd.criu_op(kfd_fd_, &args);
    return code == 0 ? kfd_fd_ : code;
}

bool RestoredProcess::map(const char* path, uint64_t* offset, int* fd) const noexcept {
    const char* name = base_name(path);
    const uint32_t minor = minor_of(name);
    if (kfd_fd_ < 0 || (minor == 0 && std::strcmp(name, "kfd") != 0))
        return false;
    for (const kfd_criu_bo_bucket& bucket : buckets_) {
        if (*offset < bucket.offset || *offset - bucket.offset >= bucket.size)
            continue;
        for (size_t i = 0; i < devices_.size(); ++i) {
            if (devices_[i].user_gpu_id != bucket.gpu_id || (minor != 0 && old_minors_[i] != minor))
                continue;
            *offset = bucket.restored_offset + (*offset - bucket.offset);
            *fd = minor != 0 ? static_cast<int>(devices_[i].drm_fd) : kfd_fd_;
            return true;
        }
    }
    return false;
}

}  // namespace checkpointd::amdgpu
