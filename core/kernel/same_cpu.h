// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <sched.h>
#include <sys/types.h>

namespace checkpointd {

// While it lives the calling thread runs on the CPU on which the stopped task `tid` ran last. A task that is
// asked by ptrace answers each time within microseconds; were asker and task on two CPUs, each would wake the
// other out of idle every time, which takes a virtual machine many times as long. An optimisation: where it
// cannot be had nothing happens.
class SameCpu {
  public:
    explicit SameCpu(pid_t tid);
    SameCpu(const SameCpu&) = delete;
    SameCpu& operator=(const SameCpu&) = delete;
    ~SameCpu();

  private:
    cpu_set_t before_{};
    bool is_bound_ = false;
};

}  // namespace checkpointd
