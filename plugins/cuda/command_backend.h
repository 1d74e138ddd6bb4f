// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <string>

#include "core/base/scoped_fd.h"
#include "plugins/cuda/backend.h"

namespace checkpointd::cuda {

// NVIDIA's command cuda-checkpoint: needs no helper, and takes seconds for every call, because each loads the driver.
class CommandBackend : public Backend {
  public:
    explicit CommandBackend(std::string command) : command_(std::move(command)) {}

    Result<Answer> ask(const Request& request, Deadline deadline, int fd) override;
    bool finish_late(Deadline deadline) override;

  private:
    ScopedFd late_;  // pidfd of a command that goes on
    pid_t late_pid_ = 0;
    std::string command_;
};

}  // namespace checkpointd::cuda
