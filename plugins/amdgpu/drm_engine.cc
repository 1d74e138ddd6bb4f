// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/amdgpu/drm_engine.h"

#include <algorithm>
#include <cstring>

#include "plugins/amdgpu/sdma.h"

namespace checkpointd::amdgpu {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kHugePage = 2u << 20;
// Commands of copies that are under way must stay as they are: each has a slot.
constexpr uint64_t kSlots = 16;
constexpr uint64_t kSlotBytes = 4096;

Result<void> checked(int code, const char* step) {
    if (code == 0)
        return {};
    return fail_errno("copies to and from GPU memory", fmt::format("amdgpu_{}", step),
                      code < 0 ? -code : code);
}

// The first failure counts, and everything is tried.
void also(Result<void>& result, Result<void> next) {
    if (result && !next)
        result = std::move(next);
}

}  // namespace

Result<std::unique_ptr<DrmEngine>> DrmEngine::open(const drm::Api& api, ScopedFd render_node) {
    std::unique_ptr<DrmEngine> engine(new DrmEngine(api, std::move(render_node)));
    CKPT_TRY(engine->initialize());
    return engine;
}

Result<void> DrmEngine::initialize() {
    uint32_t major = 0;
    uint32_t minor = 0;
    CKPT_TRY(checked(api_.device_initialize(render_node_.get(), &major, &minor, &device_),
                     "device_initialize"));
    drm::GpuInfo info{};
    CKPT_TRY(checked(api_.query_gpu_info(device_, &info), "query_gpu_info"));
    family_ = info.family_id;
    CKPT_TRY(checked(api_.cs_ctx_create(device_, &context_), "cs_ctx_create"));
    drm::AllocRequest request{kSlots * kSlotBytes, kPage, drm::kHeapGtt, 0};
    CKPT_TRY(checked(api_.bo_alloc(device_, &request, &commands_.buffer), "bo_alloc"));
    commands_.size = request.size;
    CKPT_TRY(map(commands_));
    void* memory = nullptr;
    CKPT_TRY(checked(api_.bo_cpu_map(commands_.buffer, &memory), "bo_cpu_map"));
    commands_memory_ = static_cast<std::byte*>(memory);
    return {};
}

// The GPU must have ended before its pages go; who abandons an engine because it has not does not
// destroy it.
DrmEngine::~DrmEngine() {
    for (const auto& fence : std::map(fences_))
        (void)wait(fence.first, Deadline::max());
    for (auto& [number, buffer] : buffers_)
        (void)release(buffer);
    (void)release(staging_);
    if (commands_memory_ != nullptr)
        (void)api_.bo_cpu_unmap(commands_.buffer);
    (void)release(commands_);
    if (context_ != nullptr)
        (void)api_.cs_ctx_free(context_);
    if (device_ != nullptr)
        (void)api_.device_deinitialize(device_);
}

Result<void> DrmEngine::map(Mapped& buffer) {
    const uint64_t alignment = buffer.size >= kHugePage ? kHugePage : kPage;
    CKPT_TRY(checked(api_.va_range_alloc(device_, drm::kGeneralRange, buffer.size, alignment, 0,
                                         &buffer.address, &buffer.range, 0),
                     "va_range_alloc"));
    CKPT_TRY(checked(api_.bo_va_op(buffer.buffer, 0, buffer.size, buffer.address, 0, drm::kMap),
                     "bo_va_op"));
    buffer.is_mapped = true;
    return {};
}

Result<void> DrmEngine::release(Mapped& buffer) {
    Result<void> result;
    if (buffer.list != nullptr)
        also(result, checked(api_.bo_list_destroy(buffer.list), "bo_list_destroy"));
    if (buffer.is_mapped)
        also(result,
             checked(api_.bo_va_op(buffer.buffer, 0, buffer.size, buffer.address, 0, drm::kUnmap),
                     "bo_va_op"));
    if (buffer.range != nullptr)
        also(result, checked(api_.va_range_free(buffer.range), "va_range_free"));
    if (buffer.buffer != nullptr)
        also(result, checked(api_.bo_free(buffer.buffer), "bo_free"));
    buffer = Mapped();
    return result;
}

Result<void> DrmEngine::pin(std::byte* memory, uint64_t size) {
    if (staging_.buffer != nullptr)
        return fail(ErrorKind::kInternal, "copies to and from GPU memory",
                    "memory is pinned already");
    CKPT_TRY(checked(api_.create_bo_from_user_mem(device_, memory, size, &staging_.buffer),
                     "create_bo_from_user_mem"));
    staging_.size = size;
    staging_memory_ = memory;
    return map(staging_);
}

Result<uint64_t> DrmEngine::attach(int dmabuf_fd, uint64_t size) {
    Mapped& buffer = buffers_[++last_buffer_];
    drm::ImportResult imported{};
    CKPT_TRY(checked(
        api_.bo_import(device_, drm::kImportDmaBuf, static_cast<uint32_t>(dmabuf_fd), &imported),
        "bo_import"));
    buffer.buffer = imported.buffer;
    buffer.size = size;
    if (imported.size < size)
        return fail(
            ErrorKind::kBadImage, "GPU memory",
            fmt::format("a buffer has {} bytes, and {} are to be copied", imported.size, size));
    CKPT_TRY(map(buffer));
    drm::Buffer all[] = {buffer.buffer, staging_.buffer, commands_.buffer};
    CKPT_TRY(checked(api_.bo_list_create(device_, std::size(all), all, nullptr, &buffer.list),
                     "bo_list_create"));
    return last_buffer_;
}

Result<void> DrmEngine::detach(uint64_t number) {
    auto found = buffers_.find(number);
    if (found == buffers_.end())
        return fail(ErrorKind::kInternal, "copies to and from GPU memory", "no such buffer");
    Mapped buffer = found->second;
    buffers_.erase(found);
    return release(buffer);
}

Result<uint64_t> DrmEngine::start(const Copy& copy) {
    auto found = buffers_.find(copy.buffer);
    if (found == buffers_.end() || copy.offset > found->second.size ||
        copy.size > found->second.size - copy.offset || copy.host < staging_memory_ ||
        copy.host + copy.size > staging_memory_ + staging_.size)
        return fail(ErrorKind::kInternal, "copies to and from GPU memory",
                    "a copy beyond the ends");
    const uint64_t device = found->second.address + copy.offset;
    const uint64_t host = staging_.address + static_cast<uint64_t>(copy.host - staging_memory_);
    const bool in = copy.direction == Direction::kToDevice;
    return submit(found->second, in ? host : device, in ? device : host, copy.size);
}

Result<uint64_t> DrmEngine::submit(const Mapped& buffer, uint64_t from, uint64_t to,
                                   uint64_t size) {
    const std::vector<uint32_t> words = sdma_copy(from, to, size, family_);
    const uint64_t slot = started_ % kSlots * kSlotBytes;
    if (words.size() * sizeof(uint32_t) > kSlotBytes || fences_.size() >= kSlots)
        return fail(ErrorKind::kInternal, "copies to and from GPU memory", "too much at once");
    std::memcpy(commands_memory_ + slot, words.data(), words.size() * sizeof(uint32_t));
    drm::Commands commands{0, commands_.address + slot, static_cast<uint32_t>(words.size())};
    drm::Request request{};
    request.ip_type = drm::kCopyEngine;
    request.buffers = buffer.list;
    request.commands_count = 1;
    request.commands = &commands;
    CKPT_TRY(checked(api_.cs_submit(context_, 0, &request, 1), "cs_submit"));
    fences_[++started_] = request.number;
    return started_;
}

Result<void> DrmEngine::wait(uint64_t number, Deadline deadline) {
    auto found = fences_.find(number);
    if (found == fences_.end())
        return {};  // waited for already
    drm::Fence fence{context_, drm::kCopyEngine, 0, 0, found->second};
    const auto left =
        std::chrono::duration_cast<std::chrono::nanoseconds>(deadline - Deadline::clock::now())
            .count();
    const uint64_t timeout = deadline == Deadline::max()
                                 ? UINT64_MAX
                                 : static_cast<uint64_t>(std::max<int64_t>(left, 0));
    uint32_t has_ended = 0;
    CKPT_TRY(checked(api_.cs_query_fence_status(&fence, timeout, 0, &has_ended),
                     "cs_query_fence_status"));
    if (has_ended == 0)
        return fail(ErrorKind::kTimeout, "copies to and from GPU memory",
                    "the copy engine does not come to an end",
                    "look for a hang of the GPU in the kernel's log");
    fences_.erase(found);
    return {};
}

}  // namespace checkpointd::amdgpu
