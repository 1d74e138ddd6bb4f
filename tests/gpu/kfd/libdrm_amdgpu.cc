// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A libdrm_amdgpu.so.1 for the emulated devices: what programs need of it to copy by the copy
// engine. Its GPU executes the packets that it is given when they are submitted; a dma-buf is a
// file of the emulation, memory is the program's own. Functions answer 0 or -errno, as in amdgpu.h
// of libdrm.
#include <sys/mman.h>
#include <unistd.h>
#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "core/base/scoped_fd.h"
#include "plugins/amdgpu/drm_api.h"

namespace checkpointd::amdgpu::drm {

struct OpaqueBuffer {
    Device device = nullptr;
    std::byte* memory = nullptr;  // null: a dma-buf
    bool is_own = false;
    ScopedFd dmabuf;
    uint64_t size = 0;
};

struct OpaqueDevice {
    ScopedFd fd;
    std::mutex mutex;
    std::map<uint64_t, Buffer> mapped;  // by the GPU's address
    uint64_t next_address = 1u << 21;
};

struct OpaqueRange {};
struct OpaqueList {};

struct OpaqueContext {
    Device device = nullptr;
    uint64_t submitted = 0;
    int error = 0;  // of a copy: the context is guilty from then on
};

namespace {

constexpr uint32_t kFamily = 141;  // AMDGPU_FAMILY_AI
constexpr uint32_t kNop = 0;
constexpr uint32_t kCopyLinear = 1;
constexpr size_t kCopyWords = 7;

// What lies at an address of the GPU.
struct Place {
    Buffer buffer = nullptr;
    uint64_t offset = 0;
};

Place find(const OpaqueDevice& device, uint64_t address) {
    auto found = device.mapped.upper_bound(address);
    if (found == device.mapped.begin())
        return {};
    --found;
    const uint64_t offset = address - found->first;
    return offset < found->second->size ? Place{found->second, offset} : Place{};
}

bool move(const Place& place, std::byte* data, uint64_t size, bool write) {
    const OpaqueBuffer& buffer = *place.buffer;
    const auto at = static_cast<off_t>(place.offset);
    if (buffer.memory == nullptr)
        return (write ? pwrite(buffer.dmabuf.get(), data, size, at)
                      : pread(buffer.dmabuf.get(), data, size, at)) == static_cast<ssize_t>(size);
    std::byte* memory = buffer.memory + place.offset;
    std::memcpy(write ? memory : data, write ? data : memory, size);
    return true;
}

// What lies beyond the end of a buffer is a page fault of the device, of which who copies hears
// nothing.
int copy(const OpaqueDevice& device, uint64_t from, uint64_t to, uint64_t size) {
    const Place source = find(device, from);
    const Place destination = find(device, to);
    if (source.buffer == nullptr || destination.buffer == nullptr)
        return 0;
    size = std::min(
        {size, source.buffer->size - source.offset, destination.buffer->size - destination.offset});
    std::vector<std::byte> data(size);
    return move(source, data.data(), size, false) && move(destination, data.data(), size, true)
               ? 0
               : -ECANCELED;
}

uint64_t address_in(const uint32_t* words) {
    return words[0] | static_cast<uint64_t>(words[1]) << 32;
}

int execute(const OpaqueDevice& device, const Commands& commands) {
    const Place place = find(device, commands.gpu_address);
    if (place.buffer == nullptr || place.buffer->memory == nullptr || commands.words % 8 != 0 ||
        commands.words * sizeof(uint32_t) > place.buffer->size)
        return -ECANCELED;
    std::vector<uint32_t> words(commands.words);
    std::memcpy(words.data(), place.buffer->memory + place.offset, words.size() * sizeof(uint32_t));
    for (size_t i = 0; i < words.size();) {
        if (words[i] == kNop) {
            ++i;
            continue;
        }
        if (words[i] != kCopyLinear || words.size() - i < kCopyWords)
            return -ECANCELED;
        const uint64_t size = uint64_t{words[i + 1]} + 1;
        if (const int error =
                copy(device, address_in(&words[i + 3]), address_in(&words[i + 5]), size);
            error != 0)
            return error;
        i += kCopyWords;
    }
    return 0;
}

}  // namespace

extern "C" {

int amdgpu_device_initialize(int fd, uint32_t* major, uint32_t* minor, Device* out) {
    *major = 3;
    *minor = 54;
    *out = new OpaqueDevice;
    (*out)->fd = ScopedFd(dup(fd));
    return (*out)->fd ? 0 : -errno;
}

int amdgpu_device_deinitialize(Device device) {
    delete device;
    return 0;
}

int amdgpu_device_get_fd(Device device) {
    return device->fd.get();
}

int amdgpu_query_gpu_info(Device, GpuInfo* info) {
    info->family_id = kFamily;
    return 0;
}

int amdgpu_create_bo_from_user_mem(Device device, void* memory, uint64_t size, Buffer* out) {
    *out = new OpaqueBuffer{device, static_cast<std::byte*>(memory), false, {}, size};
    return 0;
}

int amdgpu_bo_import(Device device, uint32_t kind, uint32_t handle, ImportResult* out) {
    if (kind != kImportDmaBuf)
        return -EPERM;
    ScopedFd dmabuf(dup(static_cast<int>(handle)));
    const off_t size = dmabuf ? lseek(dmabuf.get(), 0, SEEK_END) : -1;
    if (size < 0)
        return -errno;
    *out = {
        new OpaqueBuffer{device, nullptr, false, std::move(dmabuf), static_cast<uint64_t>(size)},
        static_cast<uint64_t>(size)};
    return 0;
}

int amdgpu_bo_alloc(Device device, AllocRequest* request, Buffer* out) {
    constexpr uint64_t kPage = 4096;
    const uint64_t size = (request->size + kPage - 1) / kPage * kPage;
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return -errno;
    *out = new OpaqueBuffer{device, static_cast<std::byte*>(memory), true, {}, size};
    return 0;
}

int amdgpu_bo_free(Buffer buffer) {
    if (buffer->is_own)
        munmap(buffer->memory, buffer->size);
    delete buffer;
    return 0;
}

int amdgpu_bo_cpu_map(Buffer buffer, void** memory) {
    *memory = buffer->memory;
    return buffer->is_own ? 0 : -EINVAL;
}

int amdgpu_bo_cpu_unmap(Buffer) {
    return 0;
}

int amdgpu_va_range_alloc(Device device, uint32_t, uint64_t size, uint64_t alignment, uint64_t,
                          uint64_t* address, Range* out, uint64_t) {
    const std::lock_guard lock(device->mutex);
    *address = (device->next_address + alignment - 1) / alignment * alignment;
    device->next_address = *address + size;
    *out = new OpaqueRange;
    return 0;
}

int amdgpu_va_range_free(Range range) {
    delete range;
    return 0;
}

int amdgpu_bo_va_op(Buffer buffer, uint64_t, uint64_t, uint64_t address, uint64_t,
                    uint32_t operation) {
    const std::lock_guard lock(buffer->device->mutex);
    if (operation == kMap)
        return buffer->device->mapped.emplace(address, buffer).second ? 0 : -EINVAL;
    return buffer->device->mapped.erase(address) == 1 ? 0 : -ENOENT;
}

int amdgpu_bo_list_create(Device, uint32_t, Buffer*, uint8_t*, List* out) {
    *out = new OpaqueList;
    return 0;
}

int amdgpu_bo_list_destroy(List list) {
    delete list;
    return 0;
}

int amdgpu_cs_ctx_create(Device device, Context* out) {
    *out = new OpaqueContext{device};
    return 0;
}

int amdgpu_cs_ctx_free(Context context) {
    delete context;
    return 0;
}

int amdgpu_cs_submit(Context context, uint64_t, Request* requests, uint32_t count) {
    const std::lock_guard lock(context->device->mutex);
    for (uint32_t i = 0; i < count; ++i) {
        if (requests[i].ip_type != kCopyEngine || context->error != 0)
            return context->error != 0 ? context->error : -EINVAL;
        for (uint32_t j = 0; j < requests[i].commands_count && context->error == 0; ++j)
            context->error = execute(*context->device, requests[i].commands[j]);
        requests[i].number = ++context->submitted;
    }
    return 0;
}

int amdgpu_cs_query_fence_status(Fence* fence, uint64_t, uint64_t, uint32_t* has_ended) {
    *has_ended = fence->number <= fence->context->submitted ? 1 : 0;
    return fence->context->error;
}

}  // extern "C"

}  // namespace checkpointd::amdgpu::drm
