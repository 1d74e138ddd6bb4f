// SPDX-License-Identifier: LGPL-2.1-or-later
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <random>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "core/base/sanitizer_test_util.h"
#include "core/inject/dead_bytes.h"
#include "core/inject/forked_copy.h"
#include "core/inject/remote_syscalls.h"
#include "core/inject/seize.h"
#include "core/inject/target_test_util.h"
#include "core/kernel/proc_maps.h"

namespace checkpointd {
namespace {

using testing::Kind;
using testing::Target;
using testing::kinds;

// Kills per kind of target; the soak test raises it. A sanitizer sees the same code in each.
int kills() {
    const char* text = std::getenv("CHECKPOINTD_TEST_KILLS");
    return text ? std::atoi(text) : testing::under_sanitizer() ? 6 : 30;
}

// What an injector does in every thread and, if asked, forks off a copy; dies on its own at the step that the hook
// chooses.
void inject_everywhere(pid_t pid, StubPlace place, const std::function<void(const char*)>& on_step,
                       bool copies = false) {
    Result<SeizedForest> forest = SeizedForest::seize_tree(pid);
    if (!forest)
        _exit(100);
    RemoteOptions options;
    options.place = place;
    options.on_step = on_step;
    for (SeizedProcess& process : forest->processes())
        for (SeizedThread& thread : process.threads) {
            Result<RemoteSyscalls> remote = RemoteSyscalls::open(process, thread, options);
            if (!remote)
                _exit(101);
            timespec when{};
            // Calls that the strictest target allows as well.
            if (!remote->call_out(SYS_clock_gettime, {CLOCK_MONOTONIC, RemoteSyscalls::kOut}, when) ||
                !remote->call(SYS_rt_sigprocmask, {0, 0, 0, 8}) || when.tv_sec == 0 ||
                !remote->close())
                _exit(102);
        }
    for (SeizedProcess& process : forest->processes()) {
        if (!copies)
            break;
        Result<ForkedCopy> copy = ForkedCopy::make(process, options);
        if (!copy && copy.error().kind != ErrorKind::kUnsupported)  // where its filter forbids it
            _exit(103);
    }
}

pid_t start_injector(const std::function<void()>& work) {
    pid_t injector = fork();
    if (injector == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        work();
        _exit(0);
    }
    return injector;
}

int wait_for(pid_t pid) {
    int status = 0;
    waitpid(pid, &status, 0);
    return status;
}

class Injection : public ::testing::TestWithParam<Kind> {
  protected:
    Injection() : target_(GetParam().body, GetParam().threads) {
        target_.settle();
        maps_ = target_.maps();
        mask_ = target_.status("SigBlk");
    }

    void expect_untouched() {
        EXPECT_EQ(target_.complaint(), "");
        EXPECT_TRUE(Target::eventually([&] { return target_.relatives().empty(); }))
            << "a process that an injector made is left: " << target_.relatives();
        EXPECT_EQ(target_.status("TracerPid"), "0");
        EXPECT_TRUE(Target::eventually([&] { return target_.status("SigBlk") == mask_; }))
            << target_.status("SigBlk") << " was " << mask_;
    }
    void expect_no_eintr() { EXPECT_EQ(target_.shared().eintrs, 0u); }
    void expect_works() {
        GetParam().wake(target_);
        expect_untouched();
        EXPECT_EQ(target_.maps(), maps_);
    }

    // A sanitizer sees the same code in each kind.
    static bool copies() { return !testing::under_sanitizer() || GetParam().name == "futex"; }

    Target target_;
    std::string maps_;
    std::string mask_;
};

TEST_P(Injection, LeavesNoTrace) {
    for (StubPlace place : {StubPlace::kVdsoTail, StubPlace::kTextTail}) {
        pid_t injector = start_injector([&] { inject_everywhere(target_.pid(), place, {}, copies()); });
        EXPECT_EQ(wait_for(injector), 0);
        expect_untouched();
    }
    expect_works();
    expect_no_eintr();
}

// Dies before step 1, 2, 3, ... until a run gets through to its end.
TEST_P(Injection, SurvivesDeathAtEveryStep) {
    for (int fatal = 1;; ++fatal) {
        StubPlace place = fatal % 2 ? StubPlace::kVdsoTail : StubPlace::kTextTail;
        int status = wait_for(start_injector([&] {
            int step = 0;
            auto die = [&](const char*) {
                if (++step == fatal)
                    raise(SIGKILL);
            };
            inject_everywhere(target_.pid(), place, die, copies());
        }));
        expect_untouched();
        if (HasFailure() || fatal % 16 == 0)
            expect_works();
        ASSERT_FALSE(HasFailure()) << "died before step " << fatal;
        if (WIFEXITED(status)) {
            EXPECT_EQ(WEXITSTATUS(status), 0);
            EXPECT_GT(fatal, 10);
            break;
        }
        ASSERT_LT(fatal, 1000);
    }
    expect_works();
    expect_no_eintr();
}

// Here epoll_wait may see EINTR: the kernel answers so to any wake-up, and to die between that and the repair
// of the registers is to die too early. No other call behaves so.

TEST_P(Injection, SurvivesDeathAtRandomInstants) {
    std::minstd_rand random(static_cast<unsigned>(getpid()));
    for (int i = 0; i < kills(); ++i) {
        pid_t injector = start_injector([&] {
            for (;;)
                inject_everywhere(target_.pid(), StubPlace::kAuto, {}, copies());
        });
        usleep(random() % 6000);
        kill(injector, SIGKILL);
        int status = wait_for(injector);
        ASSERT_TRUE(WIFSIGNALED(status)) << "the injector failed with " << WEXITSTATUS(status);
        expect_untouched();
        if (i % 16 == 0)
            expect_works();
        ASSERT_FALSE(HasFailure()) << "kill number " << i;
    }
    expect_works();
}

INSTANTIATE_TEST_SUITE_P(Targets, Injection, ::testing::ValuesIn(kinds()),
                         [](const auto& target) { return target.param.name; });

const Kind& kind(const std::string& name) {
    for (const Kind& one : kinds())
        if (one.name == name)
            return one;
    std::abort();
}

void send_realtime(Target& target) {
    int value = static_cast<int>(target.shared().rounds[6].fetch_add(1));
    ASSERT_EQ(sigqueue(target.pid(), SIGRTMIN, {.sival_int = value}), 0);
}

// The whole vdso of a stopped process.
std::vector<std::byte> vdso_of(const SeizedProcess& process) {
    auto maps = read_maps(process.pid);
    for (const ProcMapping& mapping : *maps)
        if (mapping.name == "[vdso]") {
            std::vector<std::byte> bytes(mapping.end - mapping.start);
            EXPECT_TRUE(process.read_memory(mapping.start, bytes.data(), bytes.size()));
            return bytes;
        }
    return {};
}

// An image must not hold them: whoever restores it finds another vdso than its own.
TEST(DeadStubs, AreWipedOutOfTheVdso) {
    Target target(kind("nanosleep").body);
    usleep(20000);
    std::vector<std::byte> before, left, after;
    auto look = [&](std::vector<std::byte>& out, bool wipe) {
        auto forest = SeizedForest::seize_tree(target.pid());
        ASSERT_TRUE(forest);
        SeizedProcess& process = forest->processes().front();
        if (wipe) {
            ASSERT_TRUE(wipe_dead_stubs(process));
        }
        out = vdso_of(process);
    };
    look(before, false);
    int step = 0;
    wait_for(start_injector([&] {
        inject_everywhere(target.pid(), StubPlace::kVdsoTail, [&](const char*) {
            if (++step == 6) raise(SIGKILL);
        });
    }));
    look(left, false);
    EXPECT_NE(left, before) << "the injector died and left nothing: the test tests nothing";
    look(after, true);
    EXPECT_EQ(after, before);
    EXPECT_EQ(target.complaint(), "");
}

class Signals : public ::testing::TestWithParam<const char*> {};

// Signals that come while everything stands still arrive afterwards, all of them, in order, and end the wait.
TEST_P(Signals, ArriveAfterwards) {
    Target target(kind(GetParam()).body);
    target.settle();
    for (bool inject : {false, true}) {
        Result<SeizedForest> forest = SeizedForest::seize_tree(target.pid());
        ASSERT_TRUE(forest) << forest.error().text();
        SeizedProcess& process = forest->processes().front();
        for (int i = 0; i < 3; ++i)
            send_realtime(target);
        if (inject) {
            Result<RemoteSyscalls> remote = RemoteSyscalls::open(process);
            ASSERT_TRUE(remote) << remote.error().text();
            send_realtime(target);
            EXPECT_EQ(remote->call(SYS_getpid).value_or(0), static_cast<uint64_t>(target.pid()));
        }
        EXPECT_EQ(process.main_thread().shared_pending()->size(), inject ? 4u : 3u);
        uint64_t before = target.shared().rounds[0].load();
        ASSERT_TRUE(forest->release());
        EXPECT_TRUE(Target::eventually([&] {
            return target.shared().signals == target.shared().rounds[6] &&
                   target.shared().rounds[0] > before;
        })) << target.shared().signals << " of " << target.shared().rounds[6];
        EXPECT_EQ(target.complaint(), "");
        target.settle();
    }
}

// The same when the injector dies in the middle.
TEST_P(Signals, ArriveAfterItsDeath) {
    Target target(kind(GetParam()).body);
    target.settle();
    for (int fatal = 1; fatal < 14; ++fatal) {
        wait_for(start_injector([&] {
            int step = 0;
            inject_everywhere(target.pid(), StubPlace::kAuto, [&](const char*) {
                if (++step != fatal)
                    return;
                for (int i = 0; i < 3; ++i)
                    send_realtime(target);
                raise(SIGKILL);
            });
        }));
        EXPECT_TRUE(Target::eventually(
            [&] { return target.shared().signals == target.shared().rounds[6]; }));
        kind(GetParam()).wake(target);
        ASSERT_EQ(target.complaint(), "") << "died before step " << fatal;
    }
}

// Every pause ends by the signals that came during the hold alone, without a further one. Left out is our
// death between the two requests that enter the stub and block signals: a signal that is there already
// is handled before the stub's first instruction, and the pause begins anew.
TEST_P(Signals, EndTheWaitEvenAfterItsDeath) {
    Target target(kind(GetParam()).body);
    for (int fatal = 1; fatal < 14; ++fatal) {
        target.settle();
        uint64_t before = target.shared().rounds[0].load();
        int status = wait_for(start_injector([&] {
            int step = 0;
            inject_everywhere(target.pid(), StubPlace::kAuto, [&](const char* name) {
                if (++step != fatal || name == std::string_view("block signals"))
                    return;
                send_realtime(target);
                raise(SIGKILL);
            });
        }));
        if (WIFEXITED(status))
            continue;
        EXPECT_TRUE(Target::eventually([&] { return target.shared().rounds[0] > before; }))
            << "died before step " << fatal;
        if (HasFailure())
            break;
    }
}

INSTANTIATE_TEST_SUITE_P(Waits, Signals, ::testing::Values("pause", "sigsuspend", "busy"),
                         [](const auto& one) { return std::string(one.param); });

TEST(RemoteSyscalls, AnswersValueAndErrno) {
    Target target(kind("futex").body);
    Result<SeizedForest> forest = SeizedForest::seize_tree(target.pid());
    ASSERT_TRUE(forest);
    Result<RemoteSyscalls> remote = RemoteSyscalls::open(forest->processes().front());
    ASSERT_TRUE(remote) << remote.error().text();
    EXPECT_EQ(remote->call(SYS_getppid).value_or(0), static_cast<uint64_t>(getpid()));
    Result<uint64_t> closed = remote->call(SYS_close, {99999});
    ASSERT_FALSE(closed);
    EXPECT_EQ(closed.error().kind, ErrorKind::kSystem);
    EXPECT_EQ(closed.error().errno_code, EBADF);
    int death_signal = 0;
    ASSERT_TRUE(remote->call_out(SYS_prctl, {PR_GET_PDEATHSIG, RemoteSyscalls::kOut}, death_signal));
    EXPECT_EQ(death_signal, SIGKILL);
}

TEST(RemoteSyscalls, DeathOfTheTargetIsAnOutcome) {
    Target target(kind("futex").body);
    Result<SeizedForest> forest = SeizedForest::seize_tree(target.pid());
    ASSERT_TRUE(forest);
    Result<RemoteSyscalls> remote = RemoteSyscalls::open(forest->processes().front());
    ASSERT_TRUE(remote);
    kill(target.pid(), SIGKILL);
    Result<uint64_t> answer = remote->call(SYS_getpid);
    ASSERT_FALSE(answer);
    EXPECT_EQ(answer.error().kind, ErrorKind::kGone);
}

// A call that the target's own filter kills for goes through while the filter is suspended.
TEST(RemoteSyscalls, ForbiddenCallsDoNotKill) {
    for (const char* name : {"strict_seccomp", "stricter_seccomp"}) {
        Target target(kind(name).body);
        target.settle();
        ASSERT_EQ(target.complaint(), "");
        Result<SeizedForest> forest = SeizedForest::seize_tree(target.pid());
        ASSERT_TRUE(forest);
        EXPECT_EQ(forest->processes().front().main_thread().seccomp_filters()->size(), 1u);
        Result<RemoteSyscalls> remote = RemoteSyscalls::open(forest->processes().front());
        ASSERT_TRUE(remote) << remote.error().text();
        EXPECT_EQ(remote->call(SYS_getpid).value_or(0), static_cast<uint64_t>(target.pid()));
        ASSERT_TRUE(remote->close());
        ASSERT_TRUE(forest->release());
        kind(name).wake(target);
        EXPECT_EQ(target.complaint(), "");
        EXPECT_EQ(target.status("Seccomp"), "2");
    }
}

TEST(RemoteSyscalls, Speed) {
    Target target(kind("futex").body);
    Result<SeizedForest> forest = SeizedForest::seize_tree(target.pid());
    ASSERT_TRUE(forest);
    Result<RemoteSyscalls> remote = RemoteSyscalls::open(forest->processes().front());
    ASSERT_TRUE(remote);
    constexpr int kCalls = 2000;
    auto begin = std::chrono::steady_clock::now();
    std::clock_t busy = std::clock();
    for (int i = 0; i < kCalls; ++i)
        ASSERT_TRUE(remote->call(SYS_getpid));
    busy = std::clock() - busy;
    std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
    RecordProperty("us_per_call", std::to_string(took.count() / kCalls));
    // Time on the processor: how long others kept us waiting for it is not ours to judge.
    EXPECT_LT(1e6 * static_cast<double>(busy) / CLOCKS_PER_SEC / kCalls, 500.0);
    printf("%.1f us per remote call\n", took.count() / kCalls);
}

}  // namespace
}  // namespace checkpointd
