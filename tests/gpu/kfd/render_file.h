// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "tests/gpu/kfd/fuse_caller.h"
#include "tests/gpu/kfd/state.h"

namespace checkpointd::kfd_emulation {

// An open render node: the handles that dma-bufs have in it (drivers/gpu/drm/drm_prime.c). Any
// thread.
class RenderFile {
  public:
    // 0, or -errno: EINVAL for calls that a driver does not know, as drm_ioctl() answers them.
    int ioctl(const FuseCaller& caller, uint32_t command, void* data);

  private:
    int import(std::shared_ptr<Storage> dmabuf, uint32_t* handle);

    std::mutex mutex_;
    std::map<uint32_t, std::shared_ptr<Storage>> handles_;
    uint32_t last_ = 0;
};

}  // namespace checkpointd::kfd_emulation
