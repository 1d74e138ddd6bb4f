// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What of the use of NVIDIA's devices can be seen, before anything is locked, to be in the way of a checkpoint. What
// cannot be seen from outside (managed memory, memory shared between processes) is for the driver to refuse.
#pragma once

#include <string>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"

namespace checkpointd::cuda {

// Whether it has the driver's library: saves a call to the driver for each process without.
bool may_use_cuda(pid_t pid);
// Devices that are divided into instances.
std::vector<Error> find_instances(const std::string& capabilities = "/proc/driver/nvidia/capabilities");
// Descriptors of NVIDIA's devices of a process that the driver does not know: one that was forked by a CUDA process and
// has not called exec(), or one that only asks about devices. Nobody would take them away.
std::vector<Error> find_leftovers(pid_t pid);
// The same of one with the driver's library, where the driver is too old to know of any process whether it uses CUDA.
std::vector<Error> find_users(pid_t pid);
// The same of one that was not there, or had none open, when all were asked about.
std::vector<Error> find_newcomers(pid_t pid);
// Work that goes through NVIDIA's multi-process service, whose server has the state then.
std::vector<Error> find_mps(pid_t pid);

// Events for other processes (cuIpcGetEventHandle()), by the file that the driver has for them; not of a program of
// `cuda-checkpoint --launch-job`, which the driver may be able to carry.
std::vector<Error> find_ipc(pid_t pid);

// What each process must be able to put into host memory.
struct Staging {
    pid_t pid = 0;
    uint64_t bytes = 0;
};
// `most`: of all of them together, as far as the devices know. What has no room on the machine or below the limits of the
// processes' control groups.
std::vector<Error> check_staging(const std::vector<Staging>& processes, uint64_t most);

}  // namespace checkpointd::cuda
