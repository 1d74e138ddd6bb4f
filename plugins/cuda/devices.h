// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What the driver says of itself and of its devices.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "plugins/cuda/backend.h"

namespace checkpointd::cuda {

// The devices, and what of them is free. kUnsupported where the driver cannot checkpoint processes.
Result<Answer> ask_devices(Backend& backend, Backend::Deadline deadline);
// Of all of them, by whomever.
uint64_t taken_bytes(const Answer& devices);
// The driver's, as "13.4".
std::string version_text(const Answer& devices);
// Who answered, for whoever reads what is in the way.
Error about(const Answer& devices, ErrorKind kind);

// Null where it is not among them.
const Device* find_device(const Answer& devices, const Uuid& uuid);

// What has the place of a device of an image.
Uuid device_for(const Uuid& uuid, const std::vector<GpuPair>& device_map);

}  // namespace checkpointd::cuda
