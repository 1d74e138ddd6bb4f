// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A PID namespace in a unit's cgroup, for a restore whose PIDs have other owners by now: inside, the program
// has its old ones. systemd and everybody else outside sees others.
//
// Its first process (pid_namespace/init.c) lives in a copy of the unit's mount namespace, in which changes of
// the original still arrive and which has a /proc of its own; the tasks join it there.
#pragma once

#include <string>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "units/systemd.h"

namespace checkpointd {

inline constexpr const char* kPidInitProgram = "/usr/libexec/checkpointd/pid-init";

struct PidNamespacePlan {
    std::string program = kPidInitProgram;
    pid_t helper_pid = 0;   // whose namespaces it gets
    int helper_pidfd = -1;  // borrowed
    int cgroup_fd = -1;     // borrowed
};

class PidNamespace {
  public:
    // Its first process runs when this returns, a child of our parent (PID 1 for a worker). It ends with us, and
    // with this object, unless let_go() was called. kUnsupported for a unit with a user namespace of its own.
    static Result<PidNamespace> make(const PidNamespacePlan& plan, Deadline deadline);
    PidNamespace(PidNamespace&&) = default;
    PidNamespace& operator=(PidNamespace&&) = delete;
    // Kills what is left in it, and waits for that.
    ~PidNamespace();

    // Its namespaces are those to restore into.
    int init_pidfd() const { return init_.get(); }
    // The tasks are there. From now on it lives without us for as long as one of them does. `roots`: those that
    // no other has made, by their numbers inside.
    Result<void> keep_for(const std::vector<pid_t>& roots);
    // The tasks run.
    void let_go() { init_.reset(); }

  private:
    PidNamespace(ScopedFd init, ScopedFd lifeline)
        : init_(std::move(init)), lifeline_(std::move(lifeline)) {}

    ScopedFd init_;
    ScopedFd lifeline_;
};

// The first process of such a namespace among `pids`, which are a unit's; 0 if there is none.
pid_t find_namespace_init(const std::vector<pid_t>& pids);

}  // namespace checkpointd
