// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/backend.h"

#include <algorithm>
#include <poll.h>

#include "plugins/cuda/command_backend.h"
#include "plugins/cuda/helper_backend.h"

namespace checkpointd::cuda {

Backend::Deadline soon(Backend::Deadline deadline) {
    return std::min(deadline, std::chrono::steady_clock::now() + std::chrono::minutes(1));
}

bool wait_readable(int fd, Backend::Deadline deadline, const LooseThreads& tended) {
    using std::chrono::milliseconds;
    const int64_t most_ms = tended.empty() ? 60000 : 20;  // then it looks again
    for (;;) {
        tended.tend();
        const auto left = std::chrono::ceil<milliseconds>(deadline - std::chrono::steady_clock::now()).count();
        pollfd waiting{fd, POLLIN, 0};
        if (poll(&waiting, 1, static_cast<int>(std::clamp<int64_t>(left, 0, most_ms))) > 0)
            return true;
        if (left <= 0)
            return false;
    }
}

Result<std::unique_ptr<Backend>> open_backend(const Settings& settings) {
    if (settings.by_command)
        return std::unique_ptr<Backend>(new CommandBackend(settings.command));
    return HelperBackend::open();
}

}  // namespace checkpointd::cuda
