// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/gpu/kfd/render_file.h"

#include <sys/ioctl.h>
#include <cerrno>

namespace checkpointd::kfd_emulation {

namespace {

// include/uapi/drm/drm.h
constexpr unsigned kDrm = 'd';
struct PrimeHandle {
    uint32_t handle, flags;
    int32_t fd;
};
struct GemClose {
    uint32_t handle, pad;
};
constexpr uint32_t kPrimeFdToHandle = _IOWR(kDrm, 0x2e, PrimeHandle);
constexpr uint32_t kGemClose = _IOW(kDrm, 0x09, GemClose);

}  // namespace

int RenderFile::ioctl(const FuseCaller& caller, uint32_t command, void* data) {
    if (_IOC_TYPE(command) != kDrm)
        return -ENOTTY;
    if (command == kPrimeFdToHandle) {
        auto& args = *static_cast<PrimeHandle*>(data);
        return import(caller.dmabuf(static_cast<uint32_t>(args.fd)), &args.handle);
    }
    if (command != kGemClose)
        return -EINVAL;
    const std::lock_guard lock(mutex_);
    return handles_.erase(static_cast<GemClose*>(data)->handle) == 1 ? 0 : -EINVAL;
}

// The same one has the same handle.
int RenderFile::import(std::shared_ptr<Storage> dmabuf, uint32_t* handle) {
    if (dmabuf == nullptr)
        return -EINVAL;
    const std::lock_guard lock(mutex_);
    for (const auto& [number, known] : handles_)
        if (known == dmabuf) {
            *handle = number;
            return 0;
        }
    *handle = ++last_;
    handles_[last_] = std::move(dmabuf);
    return 0;
}

}  // namespace checkpointd::kfd_emulation
