// SPDX-License-Identifier: LGPL-2.1-or-later
#include <fmt/core.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <optional>

#include <gtest/gtest.h>

#include "core/arch/x86_64/stub.h"
#include "core/inject/forked_copy.h"
#include "core/inject/target_test_util.h"
#include "core/kernel/proc_maps.h"
#include "core/kernel/proc_status.h"
#include "core/kernel/proc_task.h"

namespace checkpointd {
namespace {

using testing::Shared;
using testing::Target;

// Private memory of the target, at the same address in the test: two counters that go in step.
volatile uint64_t g_first, g_second;
Shared* g_seen;

// Counts, and complains of whatever tells it that it has a child.
void count(Shared& shared) {
    g_seen = &shared;
    struct sigaction action {};
    action.sa_handler = [](int) { g_seen->fail("got SIGCHLD", 0); };
    sigaction(SIGCHLD, &action, nullptr);
    shared.ready = 1;
    for (;;) {
        g_first = g_first + 1;
        shared.rounds[0] = g_first;
        if (waitpid(-1, nullptr, WNOHANG | __WALL) != -1 || errno != ECHILD)
            shared.fail("has a child", 0);
        g_second = g_second + 1;
        usleep(100);
    }
}

uint64_t read_word(pid_t pid, volatile uint64_t& word) {
    uint64_t value = ~uint64_t{0};
    iovec local{&value, sizeof(value)};
    iovec remote{const_cast<uint64_t*>(&word), sizeof(word)};
    EXPECT_EQ(process_vm_readv(pid, &local, 1, &remote, 1, 0), ssize_t{sizeof(value)}) << errno;
    return value;
}

size_t stubs_in_vdso(pid_t pid, int mem_fd) {
    size_t found = 0;
    auto maps = read_maps(pid);
    for (size_t i = 0; maps && i < maps->size(); ++i) {
        const ProcMapping& mapping = maps->at(i);
        if (mapping.name != "[vdso]")
            continue;
        std::string bytes(mapping.size(), 0);
        EXPECT_EQ(pread(mem_fd, bytes.data(), bytes.size(), static_cast<off_t>(mapping.start)),
                  static_cast<ssize_t>(bytes.size()));
        std::string magic(reinterpret_cast<const char*>(&kStubMagic), sizeof(kStubMagic));
        found += bytes.find(magic) != std::string::npos;
    }
    return found;
}

class Copies : public ::testing::Test {
  protected:
    void seize() {
        auto seized = SeizedForest::seize_tree(target_.pid());
        ASSERT_TRUE(seized) << seized.error().text();
        forest_.emplace(std::move(*seized));
    }
    void seize_and_copy() {
        seize();
        auto copy = ForkedCopy::make(forest_->processes().front());
        ASSERT_TRUE(copy) << copy.error().text();
        copy_.emplace(std::move(*copy));
    }
    void expect_goes_on() {
        uint64_t before = target_.shared().rounds[0];
        EXPECT_TRUE(Target::eventually([&] { return target_.shared().rounds[0] > before + 20; }));
        EXPECT_EQ(target_.complaint(), "");
        EXPECT_EQ(target_.status("TracerPid"), "0");
    }

    Target target_{count};
    std::optional<SeizedForest> forest_;
    std::optional<ForkedCopy> copy_;
};

TEST_F(Copies, HoldTheMoment) {
    seize_and_copy();
    ASSERT_FALSE(HasFatalFailure());
    uint64_t first = read_word(target_.pid(), g_first), second = read_word(target_.pid(), g_second);
    ASSERT_TRUE(forest_->release());
    expect_goes_on();
    EXPECT_EQ(read_word(copy_->pid(), g_first), first);
    EXPECT_EQ(read_word(copy_->pid(), g_second), second);
    EXPECT_GT(read_word(target_.pid(), g_first), first);
}

TEST_F(Copies, AreNobodysBusiness) {
    seize_and_copy();
    ASSERT_FALSE(HasFatalFailure());
    std::string fds = fmt::format("/proc/{}/fd", copy_->pid());
    EXPECT_TRUE(std::filesystem::is_empty(fds))
        << "others would wait in vain for the end of a pipe";
    auto status = read_status(copy_->pid());
    ASSERT_TRUE(status);
    EXPECT_EQ(status->state, 't');
    EXPECT_EQ(status->tracer_pid, getpid());
    EXPECT_NE(getsid(copy_->pid()), getsid(target_.pid()));
    EXPECT_NE(getpgid(copy_->pid()), getpgid(target_.pid()));
    EXPECT_TRUE(read_children(target_.pid())->empty());
    EXPECT_EQ(stubs_in_vdso(copy_->pid(), copy_->mem_fd()), 0u);
    ASSERT_TRUE(forest_->release());
    expect_goes_on();
}

TEST_F(Copies, EndWhenTheyAreNotWanted) {
    seize_and_copy();
    ASSERT_FALSE(HasFatalFailure());
    ASSERT_TRUE(forest_->release());
    EXPECT_EQ(target_.relatives(), fmt::format("copy {} ", copy_->pid()));
    copy_.reset();
    EXPECT_EQ(target_.relatives(), "");
    expect_goes_on();
}

// Signals that come while it stands still, SIGSTOP among them, do not disturb the making.
TEST_F(Copies, OfAProcessThatIsStoppedMeanwhile) {
    seize();
    ASSERT_FALSE(HasFatalFailure());
    kill(target_.pid(), SIGSTOP);
    auto copy = ForkedCopy::make(forest_->processes().front());
    ASSERT_TRUE(copy) << copy.error().text();
    ASSERT_TRUE(forest_->release());
    EXPECT_TRUE(Target::eventually([&] { return target_.status("State").starts_with("T"); }));
    kill(target_.pid(), SIGCONT);
    expect_goes_on();
}

TEST_F(Copies, CannotBeHadOfTheDead) {
    seize();
    ASSERT_FALSE(HasFatalFailure());
    kill(target_.pid(), SIGKILL);
    auto copy = ForkedCopy::make(forest_->processes().front());
    EXPECT_FALSE(copy);
}

// Where there may be no further process nothing is left of the attempt.
TEST(CopiesRefused, WhereItsUserHasTooManyProcesses) {
    if (geteuid() != 0)
        GTEST_SKIP() << "needs root";
    Target target([](Shared& shared) {
        constexpr uid_t kNobodyElse = 3000001;
        rlimit one{1, 1};
        if (setrlimit(RLIMIT_NPROC, &one) != 0 ||
            setresuid(kNobodyElse, kNobodyElse, kNobodyElse) != 0)
            shared.fail("cannot be somebody else", errno);
        prctl(PR_SET_DUMPABLE, 1);
        count(shared);
    });
    auto forest = SeizedForest::seize_tree(target.pid());
    ASSERT_TRUE(forest) << forest.error().text();
    auto copy = ForkedCopy::make(forest->processes().front());
    ASSERT_FALSE(copy);
    EXPECT_EQ(copy.error().errno_code, EAGAIN) << copy.error().text();
    ASSERT_TRUE(forest->release());
    uint64_t before = target.shared().rounds[0];
    EXPECT_TRUE(Target::eventually([&] { return target.shared().rounds[0] > before; }));
    EXPECT_EQ(target.complaint(), "");
    EXPECT_EQ(target.relatives(), "");
}

// Its own filter would judge what the stub does after our death.
TEST(CopiesRefused, WhereAFilterForbidsTheWait) {
    for (const testing::Kind& kind : testing::kinds()) {
        if (kind.name != "strict_seccomp")
            continue;
        Target target(kind.body);
        target.settle();
        auto forest = SeizedForest::seize_tree(target.pid());
        ASSERT_TRUE(forest) << forest.error().text();
        auto copy = ForkedCopy::make(forest->processes().front());
        ASSERT_FALSE(copy);
        EXPECT_EQ(copy.error().kind, ErrorKind::kUnsupported) << copy.error().text();
        ASSERT_TRUE(forest->release());
        kind.wake(target);
        EXPECT_EQ(target.complaint(), "");
    }
}

// With its tracer a copy dies, without having run.
TEST_F(Copies, DieWithTheirMaker) {
    pid_t maker = fork();
    if (maker == 0) {
        seize_and_copy();
        if (!HasFatalFailure() && forest_->release())
            for (;;)
                pause();
        _exit(1);
    }
    EXPECT_TRUE(
        Target::eventually([&] { return target_.relatives().find("copy") != std::string::npos; }));
    kill(maker, SIGKILL);
    waitpid(maker, nullptr, 0);
    EXPECT_TRUE(Target::eventually([&] { return target_.relatives().empty(); }))
        << target_.relatives();
    expect_goes_on();
}

}  // namespace
}  // namespace checkpointd
