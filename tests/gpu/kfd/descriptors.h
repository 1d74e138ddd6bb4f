// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <linux/kfd_ioctl.h>

namespace checkpointd::kfd_emulation {

// What the driver does and a file system cannot: after CHECKPOINT or RESTORE the buckets have the
// number N of dmabuf-N where a descriptor would be; this opens them. 0, or -errno, and then none is
// open. Async-signal-safe.
int open_dmabufs(const kfd_ioctl_criu_args& args) noexcept;

}  // namespace checkpointd::kfd_emulation
