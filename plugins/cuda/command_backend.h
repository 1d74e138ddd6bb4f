// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <string>

#include "core/base/scoped_fd.h"
#include "plugins/cuda/backend.h"
#include "plugins/cuda/turn.h"

namespace checkpointd::cuda {

extern const char* const kHelperProgram;

// NVIDIA's command cuda-checkpoint: needs no helper, and takes seconds for every call, because each loads the driver.
// What is asked of one process waits for a command that still works on it, whoever has started that (turn.h). What there is of
// memory is asked of `teller` (see nvml.h), as the command does not tell.
class CommandBackend : public Backend {
  public:
    explicit CommandBackend(std::string command, std::string turns = kTurnFolder,
                            std::string teller = kHelperProgram)
        : command_(std::move(command)), turns_(std::move(turns)), teller_(std::move(teller)) {}

    Result<Answer> ask(const Request& request, Deadline deadline, int fd) override;
    bool finish_late(Deadline deadline) override;

  private:
    Result<Answer> run(const Request& request, Deadline deadline);
    Answer ask_teller(const Request& request, Deadline deadline) const;

    ScopedFd late_;  // pidfd of a command that goes on
    pid_t late_pid_ = 0;
    std::string command_;
    std::string turns_;  // folder
    std::string teller_;
};

}  // namespace checkpointd::cuda
