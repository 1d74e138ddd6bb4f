// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Dumps of programs that go on: the image holds the moment, and nobody notices.
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "core/base/sanitizer_test_util.h"
#include "core/checkpoint/bare_process_test_util.h"
#include "core/checkpoint/checkpoint.h"
#include "core/checkpoint/page_in_image_test_util.h"
#include "core/inject/target_test_util.h"
#include "core/kernel/proc_task.h"
#include "images/proto/stats.pb.h"
#include "images/test_dir.h"

namespace checkpointd {
namespace {

using images::ImageDir;
using images::ImageType;
using images::TestDir;
using testing::Shared;
using testing::Target;

constexpr size_t kPages = 1024;

// Where in the target's memory which kind is; the test reads it of Shared::rounds.
enum Where : size_t { kRounds, kPlain, kDontFork, kWipeOnFork, kCommon, kForbidden };

uint8_t* map(size_t pages, int flags) {
    return static_cast<uint8_t*>(
        mmap(nullptr, pages * kPageSize, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0));
}

// Whoever tells it of a child it did not make is wrong.
void expect_no_child(Shared& shared) {
    if (waitpid(-1, nullptr, WNOHANG | __WALL) != -1 || errno != ECHILD)
        shared.fail("has a child", 0);
}

Shared* g_shared;

// Writes the number of its round into every page it has, page after page, for ever.
void rewrite_memory(Shared& shared) {
    g_shared = &shared;
    become_bare_process();
    signal(SIGCHLD, [](int) { g_shared->fail("got SIGCHLD", 0); });
    uint8_t* plain = map(kPages, MAP_PRIVATE);
    uint8_t* special[] = {map(1, MAP_PRIVATE), map(1, MAP_PRIVATE), map(1, MAP_SHARED),
                          map(1, MAP_PRIVATE)};
    madvise(special[0], kPageSize, MADV_DONTFORK);
    madvise(special[1], kPageSize, MADV_WIPEONFORK);
    shared.rounds[kPlain] = reinterpret_cast<uint64_t>(plain);
    for (size_t i = 0; i < 4; ++i)
        shared.rounds[kDontFork + i] = reinterpret_cast<uint64_t>(special[i]);
    for (uint8_t round = 1;; ++round) {
        mprotect(special[3], kPageSize, PROT_READ | PROT_WRITE);
        for (uint8_t* page : special)
            memset(page, round, kPageSize);
        mprotect(special[3], kPageSize, PROT_NONE);
        for (size_t page = 0; page < kPages; ++page)
            memset(plain + page * kPageSize, round, kPageSize);
        expect_no_child(shared);
        ++shared.rounds[kRounds];
        shared.ready = 1;
    }
}

// Waits in one step until the target has written all its memory anew.
class WaitingSteps : public SilentSteps {
  public:
    WaitingSteps(Target& target, std::string step) : target_(target), step_(std::move(step)) {}
    Result<void> enter(std::string_view step) override {
        uint64_t before = target_.shared().rounds[kRounds];
        auto passed = [&] { return target_.shared().rounds[kRounds] > before + 2; };
        EXPECT_TRUE(step != step_ || Target::eventually(passed)) << "it does not run in " << step;
        return {};
    }

  private:
    Target& target_;
    std::string step_;
};

CheckpointRequest request_for(pid_t pid, const TestDir& dir) {
    CheckpointRequest request;
    request.target = TreeTarget{pid};
    request.image_dir_fd = dir.fd();
    request.goes_on = true;
    request.copies_from = 0;
    return request;
}

// All of a snapshot; the error of the step that failed.
Result<void> snapshot(const CheckpointRequest& request, Steps& steps, CheckpointStats& stats) {
    CKPT_ASSIGN(HeldForest held, checkpoint(request, steps, stats));
    CKPT_TRY(held.resume());
    return held.finish(steps, stats);
}

class Snapshot : public ::testing::Test {
  protected:
    explicit Snapshot(const std::function<void(Shared&)>& life = rewrite_memory) : target_(life) {}

    void take(Steps& steps) {
        auto taken = snapshot(request_for(target_.pid(), tmp_), steps, stats_);
        ASSERT_TRUE(taken) << taken.error().text();
    }
    void expect_untouched() {
        EXPECT_EQ(target_.complaint(), "");
        EXPECT_EQ(target_.status("TracerPid"), "0");
        EXPECT_TRUE(Target::eventually([&] { return target_.relatives().empty(); }))
            << target_.relatives();
        uint64_t before = target_.shared().rounds[kRounds];
        EXPECT_TRUE(Target::eventually([&] { return target_.shared().rounds[kRounds] > before; }));
    }
    // The page of a kind, by its first byte.
    int page(Where kind, size_t number = 0) {
        uint64_t address = target_.shared().rounds[kind] + number * kPageSize;
        auto type = kind == kCommon ? ImageType::kPagemapShmem : ImageType::kPagemap;
        uint64_t id = static_cast<uint64_t>(target_.pid());
        if (kind == kCommon) {
            id = target_.inode_of(address);
            address = 0;
        }
        std::string content = page_in_image(dir_, type, id, address);
        if (content.empty())
            return -1;
        expect_whole(kind, number, content);
        return static_cast<uint8_t>(content[0]);
    }
    // Of one round; or of two, if it is the one that was being written when the program was stopped.
    void expect_whole(Where kind, size_t number, const std::string& content) {
        const std::set<uint8_t> rounds(content.begin(), content.end());
        if (rounds.size() == 1)
            return;
        torn_.insert({kind, number});
        EXPECT_EQ(torn_.size(), 1u) << "page " << number << " is torn as well";
        const int apart = *rounds.rbegin() - *rounds.begin();
        EXPECT_TRUE(rounds.size() == 2 && (apart == 1 || apart == 255)) << "torn page " << number;
    }
    // It wrote page after page, so those in front are of one round and the others of the one
    // before.
    void expect_one_moment() {
        int first = page(kPlain, 0), last = page(kPlain, kPages - 1);
        expect_same_or_next(first, last);
        bool behind = false;
        for (size_t number : {1u, 2u, 511u, 512u, 777u, 1022u}) {
            int value = page(kPlain, number);
            behind |= value != first;
            EXPECT_EQ(value, behind ? last : first) << "page " << number;
        }
        for (int other : {page(kWipeOnFork), page(kCommon), page(kForbidden), first})
            expect_same_or_next(page(kDontFork), other);
    }
    static void expect_same_or_next(int ahead, int behind) {
        EXPECT_NE(behind, -1);
        EXPECT_TRUE(ahead == behind || ahead == (behind + 1) % 256) << ahead << " and " << behind;
    }

    Target target_;
    TestDir tmp_;
    ImageDir dir_ = *ImageDir::open(AT_FDCWD, tmp_.path());
    CheckpointStats stats_;
    std::set<std::pair<Where, size_t>> torn_;
};

TEST_F(Snapshot, HoldsTheMomentWhileTheProgramWritesItsMemoryAnew) {
    WaitingSteps steps(target_, "checkpoint.copies");
    take(steps);
    EXPECT_EQ(stats_.copies, 1u);
    expect_one_moment();
    expect_untouched();
    EXPECT_TRUE(dir_.read_one<images::stats_entry>(ImageType::kStatsDump));
}

// Digests that were made while pages passed by are those of the files.
TEST_F(Snapshot, DigestsAreThoseOfTheFiles) {
    auto request = request_for(target_.pid(), tmp_);
    request.digests = true;
    SilentSteps silent;
    auto taken = snapshot(request, silent, stats_);
    ASSERT_TRUE(taken) << taken.error().text();
    for (const auto& digest : stats_.digests)
        EXPECT_EQ(digest, *images::digest_file(dir_, digest.name, 1)) << digest.name;
}

// It would adopt the copy, and hear of its end.
TEST(SnapshotOfSubreapers, IsCopiedWhileTheyStandStill) {
    Target target([](Shared& shared) {
        become_bare_process();
        prctl(PR_SET_CHILD_SUBREAPER, 1);
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (;;)
                pause();
        }
        shared.ready = 1;
        for (;; ++shared.rounds[kRounds])
            if (waitpid(-1, nullptr, WNOHANG | __WALL) != 0)
                shared.fail("a child ended that it has not made", 0);
    });
    TestDir tmp;
    SilentSteps silent;
    CheckpointStats stats;
    auto taken = snapshot(request_for(target.pid(), tmp), silent, stats);
    ASSERT_TRUE(taken) << taken.error().text();
    EXPECT_EQ(stats.tasks, 2u);
    EXPECT_EQ(stats.copies, 0u);
    EXPECT_EQ(target.complaint(), "");
    uint64_t before = target.shared().rounds[kRounds];
    EXPECT_TRUE(Target::eventually([&] { return target.shared().rounds[kRounds] > before; }));
}

TEST_F(Snapshot, OfLittleIsCopiedAtOnce) {
    auto request = request_for(target_.pid(), tmp_);
    request.copies_from = 1u << 30;
    WaitingSteps steps(target_, "checkpoint.go-on");
    auto held = checkpoint(request, steps, stats_);
    ASSERT_TRUE(held) << held.error().text();
    EXPECT_EQ(stats_.copies, 0u);
    ASSERT_TRUE(held->resume());
    expect_untouched();
    ASSERT_TRUE(held->finish(steps, stats_));
    expect_one_moment();
}

// Refuses, or dies in, the step whose turn it is.
class FatalSteps : public SilentSteps {
  public:
    FatalSteps(unsigned fatal, bool dies) : left_(fatal), dies_(dies) {}
    Result<void> enter(std::string_view step) override {
        if (left_-- != 0)
            return {};
        if (dies_)
            raise(SIGKILL);
        return fail(ErrorKind::kCancelled, std::string(step), "refused by the test");
    }

  private:
    unsigned left_;
    bool dies_;
};

TEST_F(Snapshot, EveryStepMayFail) {
    std::string last;
    for (unsigned fatal = 0;; ++fatal) {
        TestDir target;
        FatalSteps steps(fatal, false);
        auto taken = snapshot(request_for(target_.pid(), target), steps, stats_);
        expect_untouched();
        if (taken)
            break;
        last = taken.error().object;
        ASSERT_LT(fatal, 100u);
        ASSERT_FALSE(HasFailure()) << "in " << last;
    }
    EXPECT_EQ(last, "checkpoint.copies");
}

// A dumper of its own, which may die. What it leaves in `place` goes with that.
pid_t start_dumper(pid_t target, Steps& steps, const TestDir& place, bool for_ever) {
    pid_t dumper = fork();
    if (dumper != 0)
        return dumper;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (bool again = true; again; again = for_ever) {
        mkdirat(place.fd(), "image", 0700);
        const ScopedFd image(openat(place.fd(), "image", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        CheckpointStats stats;
        auto request = request_for(target, place);
        request.image_dir_fd = image.get();
        if (!snapshot(request, steps, stats))
            _exit(1);
        std::filesystem::remove_all(place.path() + "/image");
    }
    _exit(0);
}

TEST_F(Snapshot, TheDumperMayDieInEveryStep) {
    int status = 1;
    for (unsigned fatal = 0; status != 0; ++fatal) {
        TestDir place;
        FatalSteps steps(fatal, true);
        waitpid(start_dumper(target_.pid(), steps, place, false), &status, 0);
        expect_untouched();
        ASSERT_TRUE(WIFSIGNALED(status) || status == 0) << "the dumper failed";
        ASSERT_FALSE(HasFailure()) << "killed in step number " << fatal;
    }
    SilentSteps silent;
    take(silent);
    expect_one_moment();
}

TEST_F(Snapshot, TheDumperMayDieAtAnyInstant) {
    const char* text = std::getenv("CHECKPOINTD_TEST_KILLS");
    const int kills = text ? std::atoi(text) : ::checkpointd::testing::under_sanitizer() ? 5 : 40;
    std::minstd_rand random(static_cast<unsigned>(getpid()));
    SilentSteps silent;
    for (int i = 0; i < kills; ++i) {
        TestDir place;
        pid_t dumper = start_dumper(target_.pid(), silent, place, true);
        usleep(random() % 40000);
        kill(dumper, SIGKILL);
        int status = 0;
        waitpid(dumper, &status, 0);
        ASSERT_TRUE(WIFSIGNALED(status)) << "the dumper failed";
        expect_untouched();
        ASSERT_FALSE(HasFailure()) << "kill number " << i;
    }
    take(silent);
    expect_one_moment();
}

}  // namespace
}  // namespace checkpointd
