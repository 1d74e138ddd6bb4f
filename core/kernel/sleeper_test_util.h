// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <csignal>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace checkpointd::testing {

// A child that sleeps until it is killed, at the end of the test at the latest.
class Sleeper {
  public:
    Sleeper() : pid_(fork()) {
        if (pid_ != 0)
            return;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;)
            pause();
    }
    ~Sleeper() {
        kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
    }
    pid_t pid() const { return pid_; }
    // It is dead then, and not reaped.
    void end() const {
        siginfo_t info;
        kill(pid_, SIGKILL);
        waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT);
    }

  private:
    pid_t pid_;
};

}  // namespace checkpointd::testing
