// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What is asked for a restore, of the image and of the driver, before any process is made.
#pragma once

#include <cstddef>
#include <vector>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "plugins/cuda/backend.h"
#include "plugins/plugin.h"

namespace checkpointd::cuda {

// What came out of it. An image of CRIU's says nothing of these.
struct RestoreFacts {
    size_t processes = 0;            // that used CUDA
    std::vector<ScopedFd> storages;  // files of device memory
    std::vector<GpuPair> pairs;      // which devices have the places of those of the image; empty: the same
};

// Fails where the driver, a device, the room on it or a file is missing that the image needs: all of that comes back as one
// error.
Result<RestoreFacts> check_restore(Backend& backend, const Settings& settings, const ckptd_host& host,
                                   Backend::Deadline deadline);

}  // namespace checkpointd::cuda
