// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <string>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"

namespace checkpointd {

// How a forest's parents, sessions and groups come about: who forks whom, before or after which setsid.
// A session can only be inherited at birth, so the order of births is the whole problem.

struct LineageTask {
    pid_t pid = 0;
    pid_t parent = 0;  // 0 or not in the list: a root
    pid_t group = 0;
    pid_t session = 0;
    std::string object;  // for errors
};

// A process to be made by another one.
struct Birth {
    pid_t pid = 0;
    bool for_parent = false;  // by CLONE_PARENT: a child of the maker's parent
};

// What one process does until everybody exists. The agent is maker 0.
struct Maker {
    pid_t pid = 0;
    bool temporary = false;     // stands in for a dead leader, and leaves afterwards
    std::vector<Birth> before;  // while still in the session it was born in
    bool new_session = false;
    std::vector<Birth> after;
    enum class Group { kInherited, kLeads, kJoins } group = Group::kInherited;
    pid_t joins = 0;
    std::vector<pid_t> reaps;   // temporary leaders that are its children
};

struct Lineage {
    std::vector<Maker> makers;  // the agent first, then every task, then temporary leaders
    bool has_groups = false;    // some group must be made or joined explicitly

    const Maker* find(pid_t pid) const;
};

// `shell_job`: sessions and groups whose leader is not in the list are ours instead of getting a
// temporary leader.
Result<Lineage> plan_lineage(const std::vector<LineageTask>& tasks, bool shell_job);

}  // namespace checkpointd
