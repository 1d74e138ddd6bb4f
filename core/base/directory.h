// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <string>
#include <sys/types.h>

#include "core/base/error.h"

namespace checkpointd {

// Makes a directory, under our umask, unless something of that name is there. Its parent must be.
Result<void> make_directory(const std::string& path, mode_t mode);

}  // namespace checkpointd
