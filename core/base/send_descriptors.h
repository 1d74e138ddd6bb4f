// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstddef>
#include <sys/types.h>

namespace checkpointd {

// SCM_MAX_FD of net/scm.h.
inline constexpr size_t kMostDescriptorsSent = 253;

// One message through a unix socket, with `count` descriptors of ours (SCM_RIGHTS); they stay ours. What sendmsg(2)
// answers. Async-signal-safe.
ssize_t send_descriptors(int socket, const void* data, size_t size, const int* fds, size_t count, int flags);

}  // namespace checkpointd
