// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What a restore needs of the place that it restores into, whoever has made it.
#pragma once

#include <functional>
#include <string>
#include <sys/types.h>
#include <utility>
#include <vector>

#include "core/base/scoped_fd.h"
#include "core/base/steps.h"
#include "units/systemd.h"

namespace checkpointd {

class UnitStage {
  public:
    virtual ~UnitStage() = default;

    virtual pid_t helper_pid() const = 0;
    // Pidfd of the helper: join its namespaces with setns(2).
    virtual int helper_pidfd() const = 0;
    // Directory of the unit's cgroup, for CLONE_INTO_CGROUP.
    virtual int cgroup_fd() const = 0;
    virtual const std::string& cgroup_dir() const = 0;
    // The descriptor that takes the place of each external of the image, by its key. They are duplicates
    // (the open file descriptions are shared with the helper and with PID 1) and close-on-exec.
    virtual const std::vector<std::pair<std::string, ScopedFd>>& externals() const = 0;
    // Are the unit's own directories those of the checkpoint, or fresh ones?
    virtual bool has_fresh_directories() const = 0;
    // Registers that all that was restored must die, because it does not run yet as a whole.
    virtual Result<uint64_t> undo_by_ending_all() = 0;

    // Makes `main_pid` (alive, a child of PID 1, in the unit's cgroup) the unit's main process and the
    // unit active; the helper leaves; `commit` lets the tasks run (up to there they are held, and die with
    // us). From its success on the unit is on its own. On failure call abandon() or destroy the object,
    // after the forest was dropped.
    virtual Result<void> hand_over(pid_t main_pid, const std::function<Result<void>()>& commit,
                                   Steps& steps, Deadline deadline) = 0;
};

}  // namespace checkpointd
