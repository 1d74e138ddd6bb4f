// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "plugins/cuda/message.h"

namespace checkpointd::cuda {

inline constexpr const char* kDevicesImage = "cuda-devices.json";

// The devices at a checkpoint, before and after the driver took the processes off them.
struct DevicesImage {
    size_t processes = 0;
    Answer before;
    Answer after;
    std::vector<std::string> storages;  // files of device memory, see storage_image.h
};

// One device of an image, and what was taken off it.
struct WantedDevice {
    Uuid uuid;
    uint64_t bytes = 0;
};

// What a restore has to know of it.
struct WantedDevices {
    size_t processes = 0;
    std::vector<WantedDevice> devices;
    std::vector<std::string> storages;
};

std::string to_json(const DevicesImage& image);
Result<WantedDevices> parse_devices(const std::string& text);

// Whether each device that was used, or the one that the map puts in its place, is here and has the room: a restore
// that runs out of device memory spoils the process for good. All that is missing comes back as one error.
Result<void> check_devices(const std::vector<WantedDevice>& wanted, const Answer& here,
                           const std::vector<GpuPair>& map);

}  // namespace checkpointd::cuda
