// SPDX-License-Identifier: LGPL-2.1-or-later
//
// How /proc is mounted for a unit. Another PID namespace needs another instance of it, as open or closed as the
// one that the unit would have had.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/base/error.h"

namespace checkpointd {

struct ProcMount {
    uint64_t attributes = 0;                                    // MOUNT_ATTR_*, see fsmount(2)
    std::vector<std::pair<std::string, std::string>> options;  // hidepid, gid, subset: proc(5)
    std::vector<std::string> below;                             // mount points on it (ProtectKernelTunables=)
};

// Of the process whose /proc/PID/mountinfo this is: what it sees at /proc. None where that is no proc.
std::optional<ProcMount> parse_proc_mount(std::string_view mountinfo);

// Mounts a new instance of proc over /proc, which belongs to the PID namespace of the caller, as `like` was
// mounted, and moves copies of what lies on that to it. For a process in a mount namespace of its own. Neither
// allocates nor takes a lock. False with errno set.
class ProcMounter {
  public:
    explicit ProcMounter(ProcMount like);
    bool mount();

  private:
    bool copy_those_below();
    int make() const;

    ProcMount like_;
    std::vector<int> copies_;
};

}  // namespace checkpointd
