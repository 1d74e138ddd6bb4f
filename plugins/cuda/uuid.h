// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <string>

#include "core/base/error.h"
#include "plugins/cuda/cuda_abi.h"

namespace checkpointd::cuda {

// "GPU-12345678-1234-1234-1234-123456789abc", as nvidia-smi -L writes it, and back.
std::string to_string(const Uuid& uuid);
Result<Uuid> parse_uuid(const std::string& text);

}  // namespace checkpointd::cuda
