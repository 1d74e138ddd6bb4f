// SPDX-License-Identifier: LGPL-2.1-or-later
#include <csignal>
#include <fcntl.h>
#include <fstream>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include <gtest/gtest.h>

#include "core/base/io.h"
#include "core/inject/remote_syscalls.h"
#include "core/inject/seize.h"
#include "core/inject/target_test_util.h"
#include "core/kernel/cgroup.h"

namespace checkpointd {
namespace {

using testing::count_for_ever;
using testing::Shared;
using testing::Target;

bool makes_progress(Target& target) {
    uint64_t before = target.shared().rounds[0];
    return Target::eventually([&] { return target.shared().rounds[0] > before; });
}

bool stands_still(Target& target) {
    uint64_t before = target.shared().rounds[0];
    usleep(30000);
    return target.shared().rounds[0] == before;
}

// Children of children, with a zombie among them.
void family(Shared& shared) {
    pid_t zombie = fork();
    if (zombie == 0)
        _exit(3);
    siginfo_t dead;
    waitid(P_PID, static_cast<id_t>(zombie), &dead, WEXITED | WNOWAIT);
    if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            count_for_ever(shared);
        }
        for (;;)
            pause();
    }
    for (;;)
        pause();
}

TEST(Seize, TreeWithZombieParentsFirst) {
    Target target(family);
    Result<SeizedForest> forest = SeizedForest::seize_tree(target.pid());
    ASSERT_TRUE(forest) << forest.error().text();
    ASSERT_EQ(forest->processes().size(), 4u);
    EXPECT_EQ(forest->processes().front().pid, target.pid());
    int zombies = 0;
    for (const SeizedProcess& process : forest->processes()) {
        zombies += process.zombie;
        EXPECT_EQ(process.threads.empty(), process.zombie);
        EXPECT_TRUE(process.pid == target.pid() || forest->find(process.parent) < &process);
    }
    EXPECT_EQ(zombies, 1);
    EXPECT_TRUE(stands_still(target));
    ASSERT_TRUE(forest->release());
    EXPECT_TRUE(makes_progress(target));
    EXPECT_EQ(target.complaint(), "");
}

TEST(Seize, KillAllEndsEverything) {
    Target target(family);
    Result<SeizedForest> forest = SeizedForest::seize_tree(target.pid());
    ASSERT_TRUE(forest);
    std::vector<pid_t> pids;
    for (const SeizedProcess& process : forest->processes())
        pids.push_back(process.pid);
    ASSERT_TRUE(forest->kill_all());
    // The test is parent and tracer in one, so its child has been reaped on the way.
    for (pid_t pid : pids)
        EXPECT_TRUE(Target::eventually([&] {
            std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
            std::string stat;
            return !std::getline(file, stat) || stat.find(") Z ") != std::string::npos;
        })) << pid;
    EXPECT_EQ(kill(target.pid(), 0), -1);
}

// Keeps forking: every child lives a moment, so that some appear while the tree is being seized.
void fork_for_ever(Shared& shared) {
    signal(SIGCHLD, SIG_IGN);
    for (shared.ready.fetch_add(1);; shared.rounds[0].fetch_add(1)) {
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            usleep(3000);
            _exit(0);
        }
        usleep(500);
    }
}

TEST(Seize, ForkingTreeStandsStillAsAWhole) {
    Target target(fork_for_ever);
    for (int i = 0; i < 20; ++i) {
        usleep(2000);
        Result<SeizedForest> forest = SeizedForest::seize_tree(target.pid());
        ASSERT_TRUE(forest) << forest.error().text();
        std::ifstream file("/proc/" + std::to_string(target.pid()) + "/task/" +
                           std::to_string(target.pid()) + "/children");
        for (pid_t child; file >> child;)
            EXPECT_TRUE(forest->find(child)) << child;
        ASSERT_TRUE(forest->release());
    }
    EXPECT_TRUE(makes_progress(target));
    EXPECT_EQ(target.complaint(), "");
}

// A child that keeps its parent in vfork() for a while.
void vfork_for_ever(Shared& shared) {
    for (shared.ready.fetch_add(1);; shared.rounds[0].fetch_add(1))
        if (pid_t child = vfork(); child == 0) {
            usleep(50000);
            _exit(0);
        } else {
            waitpid(child, nullptr, 0);
        }
}

TEST(Seize, ParentInVforkIsWaitedFor) {
    Target target(vfork_for_ever);
    for (int i = 0; i < 5; ++i) {
        usleep(7000 * i);
        Result<SeizedForest> forest = SeizedForest::seize_tree(target.pid());
        ASSERT_TRUE(forest) << forest.error().text();
        EXPECT_TRUE(stands_still(target));
        ASSERT_TRUE(forest->release());
        EXPECT_TRUE(makes_progress(target));
    }
    EXPECT_EQ(target.complaint(), "");
}

TEST(Seize, JobControlStopStays) {
    Target target(count_for_ever);
    kill(target.pid(), SIGSTOP);
    ASSERT_TRUE(Target::eventually([&] { return target.status("State")[0] == 'T'; }));
    Result<SeizedForest> forest = SeizedForest::seize_tree(target.pid());
    ASSERT_TRUE(forest);
    EXPECT_EQ(forest->processes().front().stop_signal, SIGSTOP);
    Result<RemoteSyscalls> remote = RemoteSyscalls::open(forest->processes().front());
    ASSERT_TRUE(remote);
    EXPECT_TRUE(remote->call(SYS_getpid));
    ASSERT_TRUE(remote->close());
    ASSERT_TRUE(forest->release());
    EXPECT_TRUE(Target::eventually([&] { return target.status("State")[0] == 'T'; }));
    EXPECT_TRUE(stands_still(target));
    kill(target.pid(), SIGCONT);
    EXPECT_TRUE(makes_progress(target));
}

TEST(Seize, StopThatComesDuringRemoteCallsIsKept) {
    Target target(count_for_ever);
    Result<SeizedForest> forest = SeizedForest::seize_tree(target.pid());
    ASSERT_TRUE(forest);
    Result<RemoteSyscalls> remote = RemoteSyscalls::open(forest->processes().front());
    ASSERT_TRUE(remote);
    kill(target.pid(), SIGSTOP);
    EXPECT_EQ(remote->call(SYS_getpid).value_or(0), static_cast<uint64_t>(target.pid()));
    ASSERT_TRUE(remote->close());
    ASSERT_TRUE(forest->release());
    EXPECT_TRUE(Target::eventually([&] { return target.status("State")[0] == 'T'; }));
    kill(target.pid(), SIGCONT);
    EXPECT_TRUE(makes_progress(target));
}

TEST(Seize, ReleaseStoppedLeavesItStopped) {
    Target target(count_for_ever);
    Result<SeizedForest> forest = SeizedForest::seize_tree(target.pid());
    ASSERT_TRUE(forest);
    ASSERT_TRUE(forest->release_stopped());
    EXPECT_TRUE(Target::eventually([&] { return target.status("State")[0] == 'T'; }));
    EXPECT_EQ(target.status("TracerPid"), "0");
    kill(target.pid(), SIGCONT);
    EXPECT_TRUE(makes_progress(target));
}

void dead_leader(Shared& shared) {
    new std::thread([&shared] { count_for_ever(shared); });
    syscall(SYS_exit, 0);
}

TEST(Seize, DeadLeaderWithLivingThreads) {
    Target target(dead_leader);
    ASSERT_TRUE(Target::eventually([&] { return target.status("State")[0] == 'Z'; }));
    Result<SeizedForest> forest = SeizedForest::seize_tree(target.pid());
    ASSERT_TRUE(forest) << forest.error().text();
    SeizedProcess& process = forest->processes().front();
    EXPECT_TRUE(process.leader_exited);
    EXPECT_FALSE(process.zombie);
    ASSERT_EQ(process.threads.size(), 1u);
    Result<RemoteSyscalls> remote = RemoteSyscalls::open(process);
    ASSERT_TRUE(remote) << remote.error().text();
    EXPECT_EQ(remote->call(SYS_getpid).value_or(0), static_cast<uint64_t>(target.pid()));
    timespec now{};
    EXPECT_TRUE(remote->call_out(SYS_clock_gettime, {CLOCK_MONOTONIC, RemoteSyscalls::kOut}, now));
    EXPECT_GT(now.tv_sec, 0);
    ASSERT_TRUE(remote->close());
    ASSERT_TRUE(forest->release());
    EXPECT_TRUE(makes_progress(target));
}

TEST(Seize, TracedTaskNamesItsTracer) {
    Target target(count_for_ever);
    pid_t tracer = fork();
    if (tracer == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        ptrace(PTRACE_SEIZE, target.pid(), 0, 0);
        for (;;)
            pause();
    }
    ASSERT_TRUE(Target::eventually(
        [&] { return target.status("TracerPid") == std::to_string(tracer); }));
    Result<SeizedForest> forest = SeizedForest::seize_tree(target.pid());
    ASSERT_FALSE(forest);
    EXPECT_NE(forest.error().text().find("traced by pid " + std::to_string(tracer)),
              std::string::npos)
        << forest.error().text();
    kill(tracer, SIGKILL);
    waitpid(tracer, nullptr, 0);
    EXPECT_TRUE(makes_progress(target));
}

TEST(Seize, RefusesItselfAndTheDead) {
    EXPECT_EQ(SeizedForest::seize_tree(getpid()).error().kind, ErrorKind::kUnsupported);
    EXPECT_EQ(SeizedForest::seize_tree(getppid()).error().kind, ErrorKind::kUnsupported);
    EXPECT_EQ(SeizedForest::seize_tree(0x3fffff).error().kind, ErrorKind::kGone);
}

// A cgroup made for the test; removed with it.
class TestCgroup {
  public:
    TestCgroup() {
        Result<std::string> top = cgroup2_mount_point();
        if (top)
            path_ = *top + "/checkpointd-test-" + std::to_string(getpid());
        usable_ = top && mkdir(path_.c_str(), 0755) == 0;
    }
    ~TestCgroup() {
        if (usable_)
            Target::eventually([&] { return rmdir(path_.c_str()) == 0; });
    }
    bool usable() const { return usable_; }
    const std::string& path() const { return path_; }
    void add(pid_t pid) { std::ofstream(path_ + "/cgroup.procs") << pid; }

  private:
    std::string path_;
    bool usable_ = false;
};

TEST(Seize, Cgroup) {
    TestCgroup cgroup;
    if (!cgroup.usable())
        GTEST_SKIP() << "no cgroup2 tree to write to";
    Target first(count_for_ever);
    Target second(fork_for_ever);
    cgroup.add(first.pid());
    cgroup.add(second.pid());
    {
        Result<SeizedForest> forest = SeizedForest::seize_cgroup(cgroup.path());
        ASSERT_TRUE(forest) << forest.error().text();
        EXPECT_TRUE(forest->find(first.pid()) && forest->find(second.pid()));
        EXPECT_TRUE(stands_still(first) && stands_still(second));
        Result<RemoteSyscalls> remote = RemoteSyscalls::open(*forest->find(second.pid()));
        ASSERT_TRUE(remote);
        EXPECT_EQ(remote->call(SYS_getpid).value_or(0), static_cast<uint64_t>(second.pid()));
    }
    EXPECT_TRUE(makes_progress(first) && makes_progress(second));
    EXPECT_EQ(*cgroup2_of(first.pid()), cgroup.path());
}

TEST(Seize, WhatUndoesAFreezeIsKnownBeforeIt) {
    TestCgroup cgroup;
    if (!cgroup.usable())
        GTEST_SKIP() << "no cgroup2 tree to write to";
    Target target(count_for_ever);
    cgroup.add(target.pid());
    std::string flag;
    SeizeOptions options;
    options.before_freeze = [&]() -> Result<void> {
        CKPT_ASSIGN(flag, read_file(AT_FDCWD, cgroup.path() + "/cgroup.freeze"));
        return fail(ErrorKind::kConflict, "test", "cannot be undone");
    };
    Result<SeizedForest> forest = SeizedForest::seize_cgroup(cgroup.path(), options);
    ASSERT_FALSE(forest);
    EXPECT_EQ(forest.error().kind, ErrorKind::kConflict);
    EXPECT_EQ(flag, "0\n");
    EXPECT_TRUE(makes_progress(target));
}

}  // namespace
}  // namespace checkpointd
