// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The way into the namespaces of a suspended unit that has a user namespace of its own. The placeholder keeps
// that one by a descriptor and does not live in it, because it could not hold PIDs from there; but whoever
// joins namespaces, and asks how ids are mapped, needs a process that lives in all of them.
#pragma once

#include <optional>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "units/placeholder.h"
#include "units/systemd.h"

namespace checkpointd {

// A process of ours in those namespaces. It does nothing, and ends with this object, or with us.
class NamespaceDoor {
  public:
    // None is needed, and nothing returned, if the placeholder lives in the unit's user namespace as it is.
    static Result<std::optional<NamespaceDoor>> open(const Placeholder& placeholder, Deadline deadline);
    int pidfd() const { return pidfd_.get(); }
    pid_t pid() const { return pid_; }

  private:
    pid_t pid_ = 0;
    ScopedFd pidfd_;
    ScopedFd gate_;  // its end of file ends the process
};

}  // namespace checkpointd
