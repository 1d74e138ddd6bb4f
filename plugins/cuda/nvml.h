// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <optional>
#include <sys/types.h>
#include <vector>

#include "plugins/cuda/message.h"

namespace checkpointd::cuda {

// What a process has of the memory of each device that it uses (total_bytes), as libnvidia-ml.so.1 tells; that library
// counts processes without a context of its own on any device. None where it is not there or does not list the process, as
// in a PID namespace whose numbers are not the machine's.
std::optional<std::vector<Device>> device_memory_of(pid_t pid);
// All devices, and what of them is free, as Operation::kMemory answers it. None where that library does not tell.
std::optional<Answer> devices_by_nvml();

}  // namespace checkpointd::cuda
