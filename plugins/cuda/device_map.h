// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Which device of a restore has the place of which one of its image.
#pragma once

#include <vector>

#include "core/base/error.h"
#include "plugins/cuda/devices_image.h"
#include "plugins/cuda/message.h"

namespace checkpointd::cuda {

// What the driver is told: nothing where none moves, else all devices of the image (it takes no map of some, not even of all
// that a process used), each with one of its own: where `map`, the policy's, says nothing of it the same, or, where that is
// taken and nothing was on it, one that is free. One that was not used, and has no place here, is left out.
struct CompleteMap {
    std::vector<GpuPair> pairs;
    std::vector<Error> blockers;
};
CompleteMap complete_map(const std::vector<WantedDevice>& image, const std::vector<GpuPair>& map, const Answer& here);

}  // namespace checkpointd::cuda
