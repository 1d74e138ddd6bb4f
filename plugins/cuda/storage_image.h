// SPDX-License-Identifier: LGPL-2.1-or-later
//
// gpu-cs-PID.img: the device memory of one process, in the format of CRIU's CUDA plugin: "CUCS", the size of a
// cuda_cs_image (32 bits, little endian) and that message in the first 4096 bytes, then the memory of each device at a
// multiple of 4096. PID is the one that the process has in its own PID namespace.
#pragma once

#include <string>
#include <string_view>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"
#include "plugins/cuda/message.h"

namespace checkpointd::cuda {

inline constexpr size_t kStorageHeader = 4096;

std::string storage_image_name(pid_t own_pid);
// Gives each region its place, one behind the other.
void place_regions(std::vector<Region>& regions);
// The first kStorageHeader bytes.
std::string storage_header(const std::vector<Region>& regions);
// `file_size`: no region may reach beyond, `object` names the file in errors. kBadImage.
Result<std::vector<Region>> parse_storage_header(std::string_view header, uint64_t file_size, const std::string& object);
Result<std::vector<Region>> read_storage_header(int fd, const std::string& object);

}  // namespace checkpointd::cuda
