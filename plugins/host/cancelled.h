// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <poll.h>

namespace checkpointd {

// Whether nobody wants the result of a call any more: `cancel_fd` of plugin.h; -1: that cannot happen. Reads nothing.
inline bool is_cancelled(int cancel_fd) {
    pollfd entry{cancel_fd, POLLIN, 0};
    return cancel_fd >= 0 && poll(&entry, 1, 0) > 0;
}

}  // namespace checkpointd
