// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/restore/lineage.h"

#include <map>
#include <optional>
#include <set>

#include <fmt/core.h>

namespace checkpointd {

namespace {

constexpr pid_t kAgent = 0;
constexpr pid_t kOurSession = -1;  // the session that the agent was born in

class LineagePlanner {
  public:
    LineagePlanner(const std::vector<LineageTask>& tasks, bool shell_job)
        : tasks_(tasks), shell_job_(shell_job) {
        for (const LineageTask& task : tasks)
            by_pid_[task.pid] = &task;
        makers_[kAgent].pid = kAgent;
        for (const LineageTask& task : tasks)
            makers_[task.pid].pid = task.pid;
    }

    Result<Lineage> plan() {
        for (const LineageTask& task : tasks_)
            children_[parent_of(task)].push_back(&task);
        CKPT_TRY(check_tree());
        place_children();
        for (const LineageTask& task : tasks_)
            place_group(task);
        CKPT_TRY(all_blockers("restore", "sessions and groups", std::move(blockers_)));
        return collect();
    }

  private:
    pid_t parent_of(const LineageTask& task) const {
        return by_pid_.contains(task.parent) ? task.parent : kAgent;
    }

    // The session a task ends up in; the shell's for a shell job.
    pid_t session_of(const LineageTask& task) const {
        bool foreign = !by_pid_.contains(task.session);
        return task.session == 0 || (shell_job_ && foreign) ? kOurSession : task.session;
    }

    // A damaged image may have a ring of parents, from which no root is reached.
    Result<void> check_tree() const {
        for (const LineageTask& task : tasks_) {
            size_t depth = 0;
            pid_t at = task.pid;
            while (at != kAgent && depth++ <= tasks_.size())
                at = parent_of(*by_pid_.at(at));
            if (at != kAgent)
                return fail(ErrorKind::kBadImage, task.object, "is its own ancestor");
        }
        return {};
    }

    pid_t final_session(pid_t maker) const {
        return maker == kAgent ? kOurSession : session_of(*by_pid_.at(maker));
    }

    void blocker(const LineageTask& task, std::string message) {
        blockers_.push_back(Error{ErrorKind::kUnsupported, task.object, std::move(message), {}, 0, {}});
    }

    // From the top down: where a leader was born must be known before its children are placed.
    void place_children() {
        born_in_[kAgent] = kOurSession;
        std::vector<pid_t> parents{kAgent};
        for (size_t i = 0; i < parents.size(); i++)
            for (const LineageTask* child : children_[parents[i]]) {
                place(*child, parents[i]);
                parents.push_back(child->pid);
            }
    }

    // Decides who makes `child` of `parent`, and when.
    void place(const LineageTask& child, pid_t parent) {
        makers_[child.pid].new_session = session_of(child) == child.pid;
        pid_t wanted = wanted_at_birth(child).value_or(final_session(parent));
        Birth own{child.pid, parent == kAgent};
        born_in_[child.pid] = wanted;
        if (wanted == final_session(parent))
            makers_[parent].after.push_back(own);
        else if (wanted == born_in_.at(parent))
            makers_[parent].before.push_back(own);
        else
            place_by_leader(child, parent, wanted);
    }

    // The session that a task must inherit: its own, or, for the leader of a new one, that of children
    // it had before. A leader without such children may come from anywhere.
    std::optional<pid_t> wanted_at_birth(const LineageTask& task) {
        if (session_of(task) != task.pid)
            return session_of(task);
        auto known = wanted_.find(task.pid);
        if (known != wanted_.end())
            return known->second;
        std::optional<pid_t> wanted;
        for (const LineageTask* child : children_[task.pid]) {
            std::optional<pid_t> old = wanted_at_birth(*child);
            if (!wanted && old && *old != task.pid && can_be_born_in(task, *old))
                wanted = old;
        }
        return wanted_[task.pid] = wanted;
    }

    // Only an ancestor, or a sibling by CLONE_PARENT, can give a task its session.
    bool can_be_born_in(const LineageTask& task, pid_t session) const {
        auto leader = by_pid_.find(session);
        if (leader != by_pid_.end() && parent_of(*leader->second) == parent_of(task))
            return true;
        for (pid_t at = parent_of(task); at != kAgent; at = parent_of(*by_pid_.at(at)))
            if (final_session(at) == session)
                return true;
        return session == kOurSession;
    }

    // A member of a session that its parent never was in: its father died, and it was adopted. It is
    // made by the session's leader, or by somebody who stands in for a dead one.
    void place_by_leader(const LineageTask& child, pid_t parent, pid_t session) {
        auto leader = by_pid_.find(session);
        if (leader == by_pid_.end()) {
            temporary_session(session, parent, child);
            makers_[session].after.push_back({child.pid, true});
        } else if (parent_of(*leader->second) == parent && session_of(*leader->second) == session &&
                   session != child.pid) {
            makers_[session].after.push_back({child.pid, true});
        } else {
            blocker(child, fmt::format("is in session {} of a task that is neither its ancestor nor "
                                       "its sibling", session));
        }
    }

    void temporary_session(pid_t session, pid_t parent, const LineageTask& child) {
        auto [made, is_new] = stand_ins_.try_emplace(session, parent);
        if (!is_new) {
            if (made->second != parent)
                blocker(child, fmt::format("shares session {}, whose leader is dead, with tasks of "
                                           "other parents", session));
            return;
        }
        Maker& leader = makers_[session];
        leader.pid = session;
        leader.temporary = true;
        leader.new_session = true;
        makers_[parent].after.push_back({session, parent == kAgent});
        if (parent != kAgent)
            makers_[parent].reaps.push_back(session);
    }

    void place_group(const LineageTask& task) {
        Maker& maker = makers_[task.pid];
        pid_t group = task.group;
        bool inherited = group == task.session || group == 0 ||
                         (shell_job_ && !by_pid_.contains(group));
        if (inherited || task.session == task.pid)
            return;
        has_groups_ = true;
        if (group == task.pid) {
            maker.group = Maker::Group::kLeads;
            return;
        }
        maker.group = Maker::Group::kJoins;
        maker.joins = group;
        auto leader = by_pid_.find(group);
        if (leader == by_pid_.end())
            temporary_group(task);
        else if (leader->second->session != task.session || leader->second->group != group)
            blocker(task, fmt::format("is in group {}, which is not of its session", group));
    }

    void temporary_group(const LineageTask& member) {
        auto [made, is_new] = stand_ins_.try_emplace(member.group, member.pid);
        if (!is_new)
            return;
        Maker& leader = makers_[member.group];
        leader.pid = member.group;
        leader.temporary = true;
        leader.group = Maker::Group::kLeads;
        makers_[member.pid].after.push_back({member.group, false});
        makers_[member.pid].reaps.push_back(member.group);
    }

    Lineage collect() {
        Lineage lineage;
        lineage.has_groups = has_groups_;
        lineage.makers.push_back(makers_[kAgent]);
        for (const LineageTask& task : tasks_)
            lineage.makers.push_back(makers_[task.pid]);
        for (const auto& [pid, parent] : stand_ins_)
            lineage.makers.push_back(makers_[pid]);
        return lineage;
    }

    const std::vector<LineageTask>& tasks_;
    bool shell_job_;
    std::map<pid_t, const LineageTask*> by_pid_;
    std::map<pid_t, std::vector<const LineageTask*>> children_;
    std::map<pid_t, Maker> makers_;
    std::map<pid_t, std::optional<pid_t>> wanted_;  // at birth, by session leaders
    std::map<pid_t, pid_t> born_in_;                // sessions
    std::map<pid_t, pid_t> stand_ins_;  // dead leader, and the task that makes its stand-in
    std::vector<Error> blockers_;
    bool has_groups_ = false;
};

}  // namespace

const Maker* Lineage::find(pid_t pid) const {
    for (const Maker& maker : makers)
        if (maker.pid == pid)
            return &maker;
    return nullptr;
}

Result<Lineage> plan_lineage(const std::vector<LineageTask>& tasks, bool shell_job) {
    return LineagePlanner(tasks, shell_job).plan();
}

}  // namespace checkpointd
