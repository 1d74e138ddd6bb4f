// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "plugins/cuda/message.h"

namespace checkpointd::cuda {

inline constexpr const char* kDevicesImage = "cuda-devices.json";

// The devices at a checkpoint.
struct DevicesImage {
    size_t processes = 0;
    Answer before;  // the driver took the processes off them
    std::vector<std::string> storages;  // files of device memory, see storage_image.h
    std::vector<Region> known;          // what processes had, each on each device
    // Where that is not known of all of them: by what is free now. Others, too, may have left the devices meanwhile.
    std::optional<Answer> after;
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

// Of the devices that were used, or those that the map puts in their places, which are not here or lack the room: a restore
// that runs out of device memory spoils the process for good. Of the room only if `checks_memory`.
std::vector<Error> find_missing(const std::vector<WantedDevice>& wanted, const Answer& here, const std::vector<GpuPair>& map,
                                bool checks_memory);

}  // namespace checkpointd::cuda
