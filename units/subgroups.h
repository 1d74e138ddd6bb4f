// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The control groups that a unit with Delegate= has made below its own.
#pragma once

#include <string>
#include <string_view>
#include <sys/types.h>
#include <utility>
#include <vector>

#include "core/base/error.h"

namespace checkpointd {

// One control group: the unit's own (path "") or one below it ("/workers/1"). `settings` are control files
// whose content was set, in the order in which they must be set again.
struct Subgroup {
    std::string path;
    uid_t uid = 0;
    gid_t gid = 0;
    mode_t mode = 0755;
    std::vector<std::string> owned;  // files that belong to uid and gid, too
    std::vector<std::pair<std::string, std::string>> settings;

    bool operator==(const Subgroup&) const = default;
};

// All groups below `cgroup_dir`, parents first, and before them the unit's own where it hands controllers
// down. Empty for a unit without groups of its own. kUnsupported for what cannot be made again.
Result<std::vector<Subgroup>> read_subgroups(const std::string& cgroup_dir);

// Does the unit's own do so?
bool hands_controllers_down(const std::vector<Subgroup>& groups);

// Makes the directories below the unit's new cgroup, ready to take processes in.
Result<void> make_subgroups(const std::string& cgroup_dir, const std::vector<Subgroup>& groups);

// Sets limits and controllers. Only when the unit's own group is empty of processes: a group that hands
// controllers down may hold none (cgroups(7), "no internal processes").
Result<void> configure_subgroups(const std::string& cgroup_dir, const std::vector<Subgroup>& groups);

// "memory pids" as they must be written: "+memory +pids".
std::string enable_all(std::string_view controllers);

}  // namespace checkpointd
