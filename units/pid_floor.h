// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Keeps the PIDs of stored images free: new processes of this boot get numbers above all of them.
#pragma once

#include <string>
#include <sys/types.h>

#include "core/base/error.h"

namespace checkpointd {

// Highest PID or TID that any image of the store needs, by the images' index files; 0 for none. Images
// whose index cannot be read are skipped: they cannot be restored either.
Result<pid_t> highest_image_pid(const std::string& store);

// Moves the kernel's PID allocator above `highest`, never back (/proc/sys/kernel/ns_last_pid, see
// pid_namespaces(7)). Returns false when nothing was to be done. kUnsupported when pid_max is too low.
Result<bool> raise_pid_floor(pid_t highest);

}  // namespace checkpointd
