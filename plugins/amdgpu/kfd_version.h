// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include "core/base/scoped_fd.h"
#include "plugins/amdgpu/kfd.h"

namespace checkpointd::amdgpu {

// Whether the kernel's KFD can do what checkpoints and restores need: 1.8, since which buffers in
// the driver's own memory (GTT) can be copied.
inline Result<void> check_kfd_version(const Kfd& kfd) {
    constexpr uint32_t kMajor = 1;
    constexpr uint32_t kLeastMinor = 8;
    const ScopedFd own(kfd.open_kfd());
    if (!own)
        return fail_errno("/dev/kfd", "cannot be opened", -own.get());
    kfd_ioctl_get_version_args version{};
    if (const int code = kfd.version(own.get(), &version); code != 0)
        return fail_errno("/dev/kfd", "does not tell its version", -code);
    if (version.major_version == kMajor && version.minor_version >= kLeastMinor)
        return {};
    return fail(ErrorKind::kUnsupported, "/dev/kfd",
                fmt::format("has version {}.{}, and checkpoints need {}.{}", version.major_version,
                            version.minor_version, kMajor, kLeastMinor),
                "boot a kernel whose amdgpu driver is newer (Linux 6.0)");
}

}  // namespace checkpointd::amdgpu
