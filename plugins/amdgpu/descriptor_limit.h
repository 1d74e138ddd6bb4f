// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <sys/resource.h>

namespace checkpointd::amdgpu {

// KFD gives a process a descriptor for each buffer, all at once: lets it have as many as it may.
// Async-signal-safe.
inline void raise_descriptor_limit() noexcept {
    rlimit limit{};
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max)
        return;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace checkpointd::amdgpu
