// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A second name of a file of device memory, beside the folder of its image: that folder gets another name when the image
// is whole, and goes when the job has failed, while a process that lives may yet need what is in the file.
#pragma once

#include <cstdint>
#include <string>
#include <sys/types.h>

#include "core/base/error.h"

namespace checkpointd::cuda {

// Where it is: of a file system without such names, the one that the file has. Those that were left behind there, by
// processes that have ended, go.
Result<std::string> keep_file(int fd, pid_t pid, uint64_t start_time);
// It is not needed any more. Of another file than keep_file() named, nothing happens.
void drop_kept(const std::string& path);

}  // namespace checkpointd::cuda
