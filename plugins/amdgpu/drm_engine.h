// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <map>

#include "core/base/scoped_fd.h"
#include "plugins/amdgpu/drm_api.h"
#include "plugins/amdgpu/kfd.h"

namespace checkpointd::amdgpu {

// The copy engine of one GPU, through libdrm_amdgpu: everything has an address of the GPU, in the
// address space of our own render node, and a copy is a list of SDMA commands on the first ring.
class DrmEngine : public CopyEngine {
  public:
    static Result<std::unique_ptr<DrmEngine>> open(const drm::Api& api, ScopedFd render_node);
    ~DrmEngine() override;

    Result<void> pin(std::byte* memory, uint64_t size) override;
    Result<uint64_t> attach(int dmabuf_fd, uint64_t size) override;
    Result<void> detach(uint64_t buffer) override;
    Result<uint64_t> start(const Copy& copy) override;
    Result<void> wait(uint64_t fence, Deadline deadline) override;

  private:
    // A buffer and where the GPU sees it. Empty members were not made.
    struct Mapped {
        drm::Buffer buffer = nullptr;
        drm::Range range = nullptr;
        drm::List list = nullptr;  // of all that a copy touches
        uint64_t address = 0;
        uint64_t size = 0;
        bool is_mapped = false;
    };

    DrmEngine(const drm::Api& api, ScopedFd render_node)
        : api_(api), render_node_(std::move(render_node)) {}
    Result<void> initialize();
    Result<void> map(Mapped& buffer);
    Result<void> release(Mapped& buffer);
    Result<uint64_t> submit(const Mapped& buffer, uint64_t from, uint64_t to, uint64_t size);

    const drm::Api api_;
    const ScopedFd render_node_;
    drm::Device device_ = nullptr;
    drm::Context context_ = nullptr;
    uint32_t family_ = 0;
    Mapped commands_;
    std::byte* commands_memory_ = nullptr;
    Mapped staging_;
    std::byte* staging_memory_ = nullptr;
    std::map<uint64_t, Mapped> buffers_;
    uint64_t last_buffer_ = 0;
    std::map<uint64_t, uint64_t> fences_;  // those under way: ours to the ring's
    uint64_t started_ = 0;
};

}  // namespace checkpointd::amdgpu
