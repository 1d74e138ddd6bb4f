// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <optional>
#include <sys/types.h>

namespace checkpointd::cuda {

// What a process has of all devices' memory, bytes, as libnvidia-ml.so.1 tells; that library counts processes without a
// context of its own on any device. None where it is not there or does not list the process, as in a PID namespace whose
// numbers are not the machine's.
std::optional<uint64_t> device_memory_of(pid_t pid);

}  // namespace checkpointd::cuda
