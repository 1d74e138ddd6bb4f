// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What is asked for a checkpoint, of the driver and of the machine, before any process is locked.
#pragma once

#include <sys/types.h>
#include <vector>

#include "core/base/error.h"
#include "plugins/cuda/process.h"
#include "plugins/cuda/settings.h"
#include "plugins/cuda/usage.h"

namespace checkpointd::cuda {

// What came out of it.
struct CheckpointFacts {
    bool stores = false;  // device memory goes to files of the image, by us
    Usage usage;
};

// `pids`: all of the job, of which `processes` use CUDA. All that is in the way comes back as one error.
Result<CheckpointFacts> check_checkpoint(Backend& backend, const Settings& settings, const std::vector<pid_t>& pids,
                                         const std::vector<Process>& processes, Backend::Deadline deadline);
// The same where the driver, if any process has its library, says of none that it uses CUDA. One that is too old says so, too.
Result<void> check_others(Backend* backend, const std::vector<pid_t>& pids, Backend::Deadline deadline);
// When all of them stand: kConflict where there is use of a device by one that is none of `processes`.
Result<void> check_newcomers(const std::vector<pid_t>& pids, const std::vector<Process>& processes);

}  // namespace checkpointd::cuda
