// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <string>

#include "core/base/scoped_fd.h"
#include "plugins/cuda/backend.h"
#include "plugins/cuda/turn.h"

namespace checkpointd::cuda {

// NVIDIA's command cuda-checkpoint: needs no helper, and takes seconds for every call, because each loads the driver.
// What is asked of one process waits for a command that still works on it, whoever has started that (turn.h).
class CommandBackend : public Backend {
  public:
    explicit CommandBackend(std::string command, std::string turns = kTurnFolder)
        : command_(std::move(command)), turns_(std::move(turns)) {}

    Result<Answer> ask(const Request& request, Deadline deadline, int fd) override;
    bool finish_late(Deadline deadline) override;

  private:
    ScopedFd late_;  // pidfd of a command that goes on
    pid_t late_pid_ = 0;
    std::string command_;
    std::string turns_;  // folder
};

}  // namespace checkpointd::cuda
