// SPDX-License-Identifier: LGPL-2.1-or-later
#include <atomic>
#include <csignal>
#include <filesystem>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <thread>
#include <ucontext.h>
#include <unistd.h>

#include "core/inject/loose_thread.h"
#include "core/inject/seize.h"
#include "core/inject/target_test_util.h"
#include "core/kernel/ptrace.h"
#include "core/transaction/recorded_process.h"

namespace checkpointd {
namespace {

using testing::count_for_ever;
using testing::Shared;
using testing::Target;

// Lives on faults that it handles, by stepping over them.
void fault_and_count(Shared& shared) {
    struct sigaction step_over {};
    step_over.sa_flags = SA_SIGINFO;
    step_over.sa_sigaction = [](int, siginfo_t*, void* context) {
        constexpr int kUd2Size = 2;
        static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP] += kUd2Size;
    };
    sigaction(SIGILL, &step_over, nullptr);
    for (shared.ready.fetch_add(1);; usleep(1000)) {
        asm volatile("ud2");
        shared.rounds[0].fetch_add(1);
    }
}

// Makes threads as soon as it is asked to, by its futex word.
void make_threads(Shared& shared) {
    for (shared.ready.fetch_add(1);; usleep(1000)) {
        shared.rounds[0].fetch_add(1);
        if (shared.word.exchange(0) != 0)
            std::thread([&] {
                shared.rounds[1].fetch_add(1);
                for (;;)
                    pause();
            }).detach();
    }
}

const auto kLongFromNow = std::chrono::steady_clock::now() + std::chrono::hours(1);

class Loose : public ::testing::Test {
  protected:
    void seize(void (*body)(Shared&)) {
        target_.emplace(body);
        mask_ = target_->status("SigBlk");
        auto forest = SeizedForest::seize_tree(target_->pid());
        ASSERT_TRUE(forest) << forest.error().text();
        forest_.emplace(std::move(*forest));
    }
    // Targets are forked from us.
    static std::string own_mask() {
        uint64_t mask = 0;
        syscall(SYS_rt_sigprocmask, SIG_BLOCK, nullptr, &mask, sizeof(mask));
        return fmt::format("{:016x}", mask);
    }
    void let_run() {
        auto running = forest_->let_run(target_->pid(), target_->pid(), nullptr);
        ASSERT_TRUE(running) << running.error().text();
    }
    Result<void> stop() { return forest_->stop_again(target_->pid(), target_->pid(), kLongFromNow); }

    // Over and over, as whoever waits for a driver does.
    bool counts_while_it_is_kept_running() {
        const uint64_t before = target_->shared().rounds[0];
        return Target::eventually([&] {
            EXPECT_TRUE(forest_->let_run(target_->pid(), target_->pid(), nullptr));
            return target_->shared().rounds[0] > before + 3;
        });
    }
    bool counts() {
        const uint64_t before = target_->shared().rounds[0];
        return Target::eventually([&] { return target_->shared().rounds[0] > before + 3; });
    }
    bool is_stopped() const {
        return Target::eventually([&] { return target_->status("State")[0] == 'T'; });
    }
    void expect_as_before() {
        EXPECT_TRUE(counts());
        EXPECT_TRUE(Target::eventually([&] { return target_->status("SigBlk") == mask_; })) << target_->status("SigBlk");
        EXPECT_EQ(target_->status("TracerPid"), "0");
    }

    std::optional<Target> target_;
    std::optional<SeizedForest> forest_;
    std::string mask_;
};

TEST_F(Loose, HasItsMaskAgainWhenItStands) {
    seize(count_for_ever);
    let_run();
    EXPECT_TRUE(counts());
    EXPECT_NE(target_->status("SigBlk"), mask_);
    ASSERT_TRUE(stop());
    EXPECT_EQ(target_->status("SigBlk"), mask_);
    EXPECT_TRUE(stop()) << "it stands already";
    ASSERT_TRUE(forest_->release());
    expect_as_before();
}

TEST_F(Loose, IsReleasedWithItsMask) {
    seize(count_for_ever);
    let_run();
    EXPECT_TRUE(counts());
    ASSERT_TRUE(forest_->release());
    expect_as_before();
}

TEST_F(Loose, GoesOnAfterSigcont) {
    seize(count_for_ever);
    let_run();
    ASSERT_EQ(kill(target_->pid(), SIGCONT), 0);
    EXPECT_TRUE(Target::eventually([&] { return target_->status("State")[0] == 't'; })) << "the kernel tells its tracer";
    EXPECT_TRUE(counts_while_it_is_kept_running());
    ASSERT_TRUE(stop());
    ASSERT_TRUE(forest_->release());
    expect_as_before();
}

TEST_F(Loose, KeepsSigstopForItsEnd) {
    for (const bool stands_first : {true, false}) {
        seize(count_for_ever);
        let_run();
        ASSERT_EQ(kill(target_->pid(), SIGSTOP), 0);
        EXPECT_TRUE(counts_while_it_is_kept_running());
        if (stands_first) {
            ASSERT_TRUE(stop());
        }
        ASSERT_TRUE(forest_->release());
        EXPECT_TRUE(is_stopped());
        ASSERT_EQ(kill(target_->pid(), SIGCONT), 0);
        expect_as_before();
    }
}

TEST_F(Loose, IsNotStoppedByWhatSigcontHasEnded) {
    seize(count_for_ever);
    let_run();
    ASSERT_EQ(kill(target_->pid(), SIGSTOP), 0);
    EXPECT_TRUE(counts_while_it_is_kept_running());
    ASSERT_EQ(kill(target_->pid(), SIGCONT), 0);
    EXPECT_TRUE(counts_while_it_is_kept_running());
    ASSERT_TRUE(stop());
    ASSERT_TRUE(forest_->release());
    expect_as_before();
}

TEST_F(Loose, HandlesItsOwnFaults) {
    seize(fault_and_count);
    mask_ = own_mask();  // it may be in its handler
    let_run();
    EXPECT_TRUE(counts_while_it_is_kept_running());
    ASSERT_TRUE(stop());
    ASSERT_TRUE(forest_->release());
    expect_as_before();
}

TEST_F(Loose, MakesThreadsThatStandInTheWayOfADumpOnly) {
    seize(make_threads);
    let_run();
    ASSERT_TRUE(stop());
    EXPECT_TRUE(forest_->check_threads());
    let_run();
    target_->shared().word = 1;
    EXPECT_TRUE(Target::eventually([&] { return target_->shared().rounds[1] != 0; }));
    ASSERT_TRUE(stop());
    auto checked = forest_->check_threads();
    ASSERT_FALSE(checked);
    EXPECT_EQ(checked.error().kind, ErrorKind::kUnsupported) << checked.error().text();
    ASSERT_TRUE(forest_->release());
    expect_as_before();
}

TEST_F(Loose, DiesLikeAnyOther) {
    seize(count_for_ever);
    let_run();
    ASSERT_EQ(kill(target_->pid(), SIGKILL), 0);
    EXPECT_TRUE(Target::eventually([&] {
        auto kept = forest_->let_run(target_->pid(), target_->pid(), nullptr);
        return !kept && kept.error().kind == ErrorKind::kGone;
    }));
    EXPECT_TRUE(forest_->release());
}

// With a journal, in a job that is killed.
class LooseOfADeadJob : public Loose {
  protected:
    void SetUp() override {
        ASSERT_NE(mkdtemp(folder_.data()), nullptr);
        add_mask_undo_kind(table_);
    }
    void TearDown() override { std::filesystem::remove_all(folder_); }
    // Lets it run, and ends by what `then` answers.
    void job(const std::function<bool(SeizedForest&, Journal&)>& then) {
        target_.emplace(count_for_ever);
        mask_ = target_->status("SigBlk");
        const pid_t pid = fork();
        if (pid == 0) {
            auto journal = Journal::create(folder_ + "/undo", table_);
            auto forest = SeizedForest::seize_tree(target_->pid());
            const bool runs = journal && forest && forest->let_run(target_->pid(), target_->pid(), &*journal);
            if (runs && then(*forest, *journal))
                _exit(0);
            kill(getpid(), SIGKILL);
        }
        waitpid(pid, nullptr, 0);
    }
    void replay() {
        auto replayed = Journal::replay(folder_ + "/undo", table_);
        ASSERT_TRUE(replayed) << replayed.error().text();
    }

    std::string folder_ = "/tmp/loose-test-XXXXXX";
    UndoTable table_;
};

TEST_F(LooseOfADeadJob, GetsItsMaskFromTheJournal) {
    job([](SeizedForest&, Journal&) { return false; });
    EXPECT_NE(target_->status("SigBlk"), mask_);
    replay();
    expect_as_before();
}

TEST_F(LooseOfADeadJob, IsNotInTheJournalOnceItStood) {
    for (const bool stands_first : {true, false}) {
        job([&](SeizedForest& forest, Journal& journal) {
            const pid_t pid = target_->pid();
            return (!stands_first || forest.stop_again(pid, pid, kLongFromNow)) && forest.release() && journal.empty() &&
                   journal.close();
        });
        EXPECT_FALSE(std::filesystem::exists(folder_ + "/undo")) << stands_first;
        expect_as_before();
    }
}

// It may have ended, and another may have its number.
TEST_F(LooseOfADeadJob, IsNotTakenForAnother) {
    job([](SeizedForest&, Journal&) { return false; });
    const std::string blocked = target_->status("SigBlk");
    UndoArgs args;
    ASSERT_TRUE(RecordedProcess::append(args, target_->pid()));
    const UndoAction& undo = *table_.find("core.restore-mask");
    EXPECT_TRUE(undo({args[0], "1", mask_}));
    EXPECT_EQ(target_->status("SigBlk"), blocked);
    EXPECT_FALSE(undo(args));
    for (int times : {1, 2}) {
        EXPECT_TRUE(undo({args[0], args[1], mask_})) << times;
        expect_as_before();
    }
    EXPECT_TRUE(undo({args[0], args[1], "1000"})) << "it has a mask that is not ours";
    expect_as_before();
}

// A tracer that is not gone yet, or that is ours: neither is in the way.
TEST_F(LooseOfADeadJob, MayHaveATracerYet) {
    job([](SeizedForest&, Journal&) { return false; });
    ASSERT_TRUE(ptrace_seize(target_->pid(), 0));
    replay();
    expect_as_before();
    UndoArgs args;
    ASSERT_TRUE(RecordedProcess::append(args, target_->pid()));
    args.push_back(mask_);
    std::atomic<bool> is_seized = false, undoes = false;
    std::jthread other([&] {
        is_seized = ptrace_seize(target_->pid(), 0).has_value();
        Target::eventually([&] { return undoes.load(); });
        usleep(50000);
    });
    ASSERT_TRUE(Target::eventually([&] { return is_seized.load(); }));
    undoes = true;
    EXPECT_TRUE((*table_.find("core.restore-mask"))(args)) << "by one that ends";
    expect_as_before();
}

}  // namespace
}  // namespace checkpointd
