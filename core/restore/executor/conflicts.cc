// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/restore/executor/conflicts.h"

#include <cstdio>
#include <fcntl.h>
#include <poll.h>
#include <set>
#include <vector>

#include <fmt/core.h>

#include "core/base/io.h"
#include "core/kernel/proc_status.h"
#include "core/kernel/proc_task.h"

namespace checkpointd {

namespace {

std::set<pid_t> wanted_numbers(const RestorePlan& plan) {
    std::set<pid_t> wanted(plan.helpers.begin(), plan.helpers.end());
    for (const PlannedTask& task : plan.tasks) {
        wanted.insert(task.pid);
        for (const PlannedThread& thread : task.threads)
            wanted.insert(thread.tid);
    }
    return wanted;
}

// State, group and session of a process, from the text after the last ')' of /proc/PID/stat.
struct Membership {
    char state = '?';
    int group = 0;
    int session = 0;
    bool dead() const { return state == 'Z' || state == 'X'; }
};

struct Holders {
    std::vector<Error> blockers;
    bool alive = false;  // at least one of them
};

Membership membership(const std::string& stat) {
    Membership found;
    size_t end = stat.rfind(')');
    if (end != std::string::npos)
        std::sscanf(stat.c_str() + end + 1, " %c %*d %d %d", &found.state, &found.group,
                    &found.session);
    return found;
}

std::string comm_of(pid_t id) {
    auto comm = read_file(AT_FDCWD, fmt::format("/proc/{}/comm", id));
    return comm && !comm->empty() ? comm->substr(0, comm->size() - 1) : "?";
}

// "sleep", "a thread of 12 (redis-server)", and where it is: systemd names the cgroup of a unit
// after it.
std::string holder_of(pid_t id) {
    std::string holder = comm_of(id);
    auto status = read_status(id);
    if (status && status->tgid != id)
        holder = fmt::format("a thread of {} ({})", status->tgid, comm_of(status->tgid));
    auto cgroup = read_cgroup2_path(id);
    return cgroup && *cgroup ? fmt::format("{}, in {}", holder, **cgroup) : holder;
}

Error taken(pid_t id, const std::string& by) {
    return Error{ErrorKind::kConflict, fmt::format("pid {}", id), "is taken by " + by,
                 "stop it, or restore after a reboot with a PID floor", 0, {}};
}

// A number stays in use while a group or session has it, though its process is gone.
void find_members(const std::set<pid_t>& wanted, Holders& holders) {
    for (pid_t pid : read_process_list().value_or(std::vector<pid_t>())) {
        auto stat = read_file(AT_FDCWD, fmt::format("/proc/{}/stat", pid));
        if (!stat)
            continue;
        Membership member = membership(*stat);
        for (pid_t number : {member.group, member.session})
            if (number != pid && wanted.contains(number)) {
                holders.blockers.push_back(taken(
                    number, fmt::format("the group or session of {} ({})", pid, holder_of(pid))));
                holders.alive = holders.alive || !member.dead();
                break;
            }
    }
}

Holders find_holders(const std::set<pid_t>& wanted) {
    Holders holders;
    for (pid_t id : wanted)
        if (auto stat = read_file(AT_FDCWD, fmt::format("/proc/{}/stat", id))) {
            bool dead = membership(*stat).dead();
            holders.blockers.push_back(
                taken(id, (dead ? "the dead process " : "") + holder_of(id)));
            holders.alive = holders.alive || !dead;
        }
    find_members(wanted, holders);
    return holders;
}

}  // namespace

Error taken_number(pid_t id) {
    return taken(id, holder_of(id));
}

Result<void> check_conflicts(const RestorePlan& plan) {
    constexpr int kPatience = 200, kPauseMs = 10;
    std::set<pid_t> wanted = wanted_numbers(plan);
    Holders holders = find_holders(wanted);
    for (int i = 0; i < kPatience && !holders.blockers.empty() && !holders.alive; i++) {
        poll(nullptr, 0, kPauseMs);
        holders = find_holders(wanted);
    }
    if (holders.blockers.empty())
        return {};
    Error error{ErrorKind::kConflict, "restore", "PIDs of the image are taken", {}, 0,
                std::move(holders.blockers)};
    return tl::unexpected(std::move(error));
}

}  // namespace checkpointd
