// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Of calls about one process, one after the other, also where each is made by a command of its own and who started it has
// given up or died: the command itself holds a lock as long as it runs, by a descriptor that it inherits.
#pragma once

#include <string>
#include <sys/types.h>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "plugins/cuda/backend.h"

namespace checkpointd::cuda {

inline constexpr const char* kTurnFolder = "/run/checkpointd";

std::string turn_file(const std::string& folder, pid_t pid);
// Waits for whoever has the turn, until the deadline: kTimeout. It is held by all copies of the descriptor. `tended`
// meanwhile.
Result<ScopedFd> take_turn(const std::string& folder, pid_t pid, Backend::Deadline deadline, const LooseThreads& tended = {});
// The same where somebody may have it, without taking it.
Result<void> wait_for_turn(const std::string& folder, pid_t pid, Backend::Deadline deadline, const LooseThreads& tended = {});
// To be called while it is held; what is left behind by who does not call it is in nobody's way.
void remove_turn(const std::string& folder, pid_t pid);

}  // namespace checkpointd::cuda
