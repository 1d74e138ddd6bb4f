// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Plays what the makers are told by the kernel's rules, and compares what comes out with what was asked.
#include "core/restore/lineage.h"

#include <deque>
#include <gtest/gtest.h>
#include <map>
#include <random>

namespace checkpointd {
namespace {

constexpr pid_t kOurs = 1;  // parent, group and session of the agent

struct Process {
    pid_t parent = kOurs;
    pid_t group = kOurs;
    pid_t session = kOurs;
};

// Everybody who was made, after all makers did their part.
class World {
  public:
    explicit World(const Lineage& lineage) : lineage_(lineage) {
        processes_[0] = {};
        run(0);
        for (const Maker& maker : lineage.makers)
            if (maker.group == Maker::Group::kLeads)
                processes_.at(maker.pid).group = maker.pid;
        for (const Maker& maker : lineage.makers)
            if (maker.group == Maker::Group::kJoins)
                join(processes_.at(maker.pid), maker.joins);
        for (const Maker& maker : lineage.makers) {
            for (pid_t helper : maker.reaps)
                EXPECT_EQ(processes_.at(helper).parent, maker.pid) << "reaps a child of another";
            if (maker.temporary)
                processes_.erase(maker.pid);
        }
        processes_.erase(0);
    }

    const std::map<pid_t, Process>& processes() const { return processes_; }

  private:
    void run(pid_t pid) {
        const Maker& maker = *lineage_.find(pid);
        make(maker, maker.before);
        if (maker.new_session)
            processes_[pid].session = processes_[pid].group = pid;
        make(maker, maker.after);
    }

    // setpgid(2): the group must exist, in the same session.
    void join(Process& member, pid_t group) {
        const Process& leader = processes_.at(group);
        EXPECT_EQ(leader.session, member.session);
        EXPECT_EQ(leader.group, group);
        member.group = group;
    }

    void make(const Maker& maker, const std::vector<Birth>& births) {
        for (const Birth& birth : births) {
            EXPECT_FALSE(processes_.contains(birth.pid)) << birth.pid << " is made twice";
            Process child = processes_[maker.pid];
            child.parent = birth.for_parent ? child.parent : maker.pid;
            processes_[birth.pid] = child;
            run(birth.pid);
        }
    }

    const Lineage& lineage_;
    std::map<pid_t, Process> processes_;
};

// pid, parent, group, session
using Family = std::vector<LineageTask>;

void expect_family(const Family& family, bool shell_job = false) {
    auto lineage = plan_lineage(family, shell_job);
    ASSERT_TRUE(lineage) << lineage.error().text();
    World world(*lineage);
    EXPECT_EQ(world.processes().size(), family.size());
    std::set<pid_t> known;
    for (const LineageTask& task : family)
        known.insert(task.pid);
    for (const LineageTask& task : family) {
        ASSERT_TRUE(world.processes().contains(task.pid)) << task.pid;
        const Process& made = world.processes().at(task.pid);
        auto ours = [&](pid_t id) { return id == 0 || (shell_job && !known.contains(id)); };
        EXPECT_EQ(made.parent, known.contains(task.parent) ? task.parent : kOurs) << task.pid;
        EXPECT_EQ(made.session, ours(task.session) ? kOurs : task.session) << task.pid;
        EXPECT_EQ(made.group, ours(task.group) ? kOurs : task.group) << task.pid;
    }
}

TEST(Lineage, OneLeader) {
    expect_family({{10, 0, 10, 10, ""}});
}

TEST(Lineage, ChildrenOfTheSession) {
    expect_family({{10, 0, 10, 10, ""}, {11, 10, 10, 10, ""}, {12, 11, 10, 10, ""}});
}

TEST(Lineage, ChildFromBeforeItsParentsSession) {
    expect_family({{10, 0, 10, 10, ""}, {11, 10, 11, 11, ""}, {12, 11, 10, 10, ""}});
}

// 12 was born in 10's session, its parent 11 as well, and both went on to sessions of their own after
// 13 was there.
TEST(Lineage, GrandchildFromBeforeTwoSessions) {
    expect_family({{10, 0, 10, 10, ""},
                   {11, 10, 11, 11, ""},
                   {12, 11, 12, 12, ""},
                   {13, 12, 10, 10, ""}});
}

TEST(Lineage, LeaderOfItsSiblingsOldSession) {
    expect_family({{10, 0, 10, 10, ""}, {11, 0, 11, 11, ""}, {12, 11, 10, 10, ""}});
}

TEST(Lineage, RootsOfADeadLeader) {
    expect_family({{11, 0, 10, 10, ""}, {12, 0, 10, 10, ""}, {13, 12, 10, 10, ""}});
}

TEST(Lineage, AdoptedByASibling) {
    expect_family({{10, 0, 10, 10, ""}, {12, 0, 10, 10, ""}});
}

TEST(Lineage, AdoptedChildOfADeadLeader) {
    expect_family({{10, 0, 10, 10, ""}, {12, 10, 11, 11, ""}, {13, 10, 11, 11, ""}});
}

TEST(Lineage, Groups) {
    expect_family({{10, 0, 10, 10, ""},
                   {11, 10, 11, 10, ""},
                   {12, 10, 11, 10, ""},
                   {13, 11, 10, 10, ""},
                   {14, 10, 15, 10, ""},    // its group's leader is dead
                   {16, 10, 15, 10, ""}});
}

TEST(Lineage, GroupOfADeadSessionLeaderAndAnother) {
    expect_family({{11, 0, 12, 10, ""}, {13, 11, 10, 10, ""}});
}

TEST(Lineage, ShellJob) {
    expect_family({{20, 3, 20, 3, ""}, {21, 20, 20, 3, ""}, {22, 20, 22, 22, ""}}, true);
    expect_family({{20, 3, 4, 3, ""}}, true);
}

TEST(Lineage, OwnAncestorIsRefused) {
    auto lineage = plan_lineage({{10, 11, 10, 10, "a"}, {11, 10, 10, 10, "b"}}, false);
    ASSERT_FALSE(lineage);
    EXPECT_EQ(lineage.error().kind, ErrorKind::kBadImage);
}

TEST(Lineage, StrangersSessionIsABlocker) {
    // 13 is in the session of a cousin.
    auto lineage = plan_lineage({{10, 0, 10, 10, ""},
                                 {11, 10, 11, 11, ""},
                                 {12, 0, 12, 12, ""},
                                 {13, 12, 11, 11, "pid 13"}},
                                false);
    ASSERT_FALSE(lineage);
    EXPECT_NE(lineage.error().text().find("pid 13"), std::string::npos);
}

// A history as the kernel would let it happen: forks, setsid, setpgid and deaths whose children go to
// the root. What is not refused must come out right, and refusals must be rare.
Family random_history(std::mt19937& random) {
    std::map<pid_t, Process> alive{{10, {kOurs, 10, 10}}};
    pid_t next = 11;
    auto any = [&] { return std::next(alive.begin(), static_cast<long>(random() % alive.size())); };
    for (int event = 0; event < 25; event++) {
        auto it = any();
        switch (random() % 6) {
        case 0:
            if (it->second.group != it->first)
                it->second.session = it->second.group = it->first;
            break;
        case 1:
            if (it->second.session != it->first)
                it->second.group = it->first;
            break;
        case 2:
            if (alive.size() > 2 && it->first != 10) {
                for (auto& [pid, process] : alive)
                    if (process.parent == it->first)
                        process.parent = kOurs;
                alive.erase(it);
            }
            break;
        default:
            alive[next++] = {it->first, it->second.group, it->second.session};
        }
    }
    Family family;
    for (const auto& [pid, process] : alive)
        family.push_back({pid, process.parent == kOurs ? 0 : process.parent, process.group,
                          process.session, std::to_string(pid)});
    return family;
}

TEST(Lineage, RandomHistories) {
    std::mt19937 random(3);
    int refused = 0;
    constexpr int kRounds = 2000;
    for (int round = 0; round < kRounds && !testing::Test::HasFailure(); round++) {
        Family family = random_history(random);
        if (plan_lineage(family, false))
            expect_family(family);
        else
            refused++;
    }
    EXPECT_LT(refused, kRounds / 2);
    RecordProperty("refused", refused);
    std::cout << refused << " of " << kRounds << " histories refused\n";
}

}  // namespace
}  // namespace checkpointd
