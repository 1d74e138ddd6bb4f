// SPDX-License-Identifier: LGPL-2.1-or-later
#include "service/worker/job_steps.h"

#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <csignal>
#include <functional>

#include <gtest/gtest.h>

#include "service/event_loop.h"
#include "service/test_fakes.h"

namespace checkpointd {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

JobRequest request_for(std::optional<Fault> fault = {}) {
    JobRequest request;
    request.id = 3;
    request.unit = "x.service";
    request.policy = Policy{}.for_unit("x.service");
    request.fault = std::move(fault);
    return request;
}

// Runs `body` in a process of its own; its return value becomes the exit status. Gives the wait status.
int in_child(const std::function<int()>& body) {
    const pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        _exit(body());
    }
    int status = 0;
    waitpid(child, &status, 0);
    return status;
}

TEST(JobSteps, FaultsThatFailLookLikeSystemCalls) {
    auto request = request_for(Fault{"checkpoint.memory", Fault::Action::kEnospc});
    JobSteps steps(request);
    EXPECT_TRUE(steps.enter("checkpoint.collect"));
    auto failed = steps.enter("checkpoint.memory");
    ASSERT_FALSE(failed);
    EXPECT_EQ(failed.error().errno_code, ENOSPC);
    EXPECT_EQ(failed.error().kind, ErrorKind::kSystem);
}

TEST(JobSteps, KillFaultEndsTheProcess) {
    auto request = request_for(Fault{"a", Fault::Action::kKill});
    const int status = in_child([&] {
        JobSteps steps(request);
        (void)steps.enter("a");
        return 0;
    });
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

// A step that never returns is ended by the alarm of its phase, after the grace of five seconds.
TEST(JobSteps, HangEndsAtTheDeadline) {
    auto request = request_for(Fault{"checkpoint.collect", Fault::Action::kHang});
    request.policy.timeouts[Phase::kCollect] = milliseconds(500);
    const uint64_t started = monotonic_usec();
    const int status = in_child([&] {
        JobSteps steps(request);
        if (!steps.arm()) return 1;
        (void)steps.enter("checkpoint.collect");
        return 0;
    });
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM) << status;
    EXPECT_GE(monotonic_usec() - started, 5000000u);
}

// What undoes goes on after the job's deadlines, and the alarms that follow them.
TEST(JobSteps, UndoingHasATimeOfItsOwn) {
    auto request = request_for();
    request.policy.timeouts[Phase::kCollect] = milliseconds(1000);
    request.policy.timeouts[Phase::kTotal] = milliseconds(1100);
    const int status = in_child([&] {
        JobSteps steps(request);
        if (!steps.arm() || !steps.enter("checkpoint.collect")) return 1;
        steps.begin_undo(std::chrono::hours(1));
        std::this_thread::sleep_for(milliseconds(6500));
        return 0;
    });
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

// So does what is given back while the job is at it; the step after that is under its deadlines again.
TEST(JobSteps, GivingBackIsNotCutShort) {
    auto request = request_for(Fault{"checkpoint.write", Fault::Action::kHang});
    request.policy.timeouts[Phase::kCollect] = milliseconds(1000);
    request.policy.timeouts[Phase::kMemory] = milliseconds(500);
    const uint64_t started = monotonic_usec();
    const int status = in_child([&] {
        JobSteps steps(request);
        if (!steps.arm() || !steps.enter("checkpoint.collect")) return 1;
        steps.giving_back(std::chrono::hours(1));
        std::this_thread::sleep_for(milliseconds(6500));
        (void)steps.enter("checkpoint.write");
        return 2;
    });
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM) << status;
    EXPECT_GE(monotonic_usec() - started, 11500000u);
}

TEST(JobSteps, SigtermIsTheWishToCancel) {
    auto request = request_for();
    const int status = in_child([&] {
        JobSteps steps(request);
        if (!steps.arm() || !steps.enter("checkpoint.resolve")) return 1;
        kill(getpid(), SIGTERM);
        auto refused = steps.enter("checkpoint.collect");
        if (refused || refused.error().kind != ErrorKind::kCancelled) return 2;
        pollfd cancelled{steps.cancel_fd(), POLLIN, 0};
        if (poll(&cancelled, 1, 0) != 1)
            return 3;  // what a plugin looks at meanwhile
        if (steps.enter("checkpoint.collect"))
            return 4;
        steps.no_way_back();
        return steps.enter("units.stop.remove-drop-in") ? 0 : 5;
    });
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(JobSteps, DeadlinesArePerPhaseAndInAll) {
    auto request = request_for();
    request.policy.timeouts[Phase::kCollect] = milliseconds(1000);
    JobSteps steps(request);
    ASSERT_TRUE(steps.enter("checkpoint.collect"));
    std::this_thread::sleep_for(milliseconds(1100));
    auto late = steps.enter("checkpoint.ask");  // the same phase
    ASSERT_FALSE(late);
    EXPECT_EQ(late.error().kind, ErrorKind::kTimeout);
    EXPECT_NE(late.error().text().find("timeouts.collect"), std::string::npos);
    EXPECT_TRUE(steps.enter("checkpoint.memory")) << "another phase has its own deadline";

    request.policy.timeouts[Phase::kTotal] = milliseconds(1);
    JobSteps hurried(request);
    usleep(5000);
    EXPECT_NE(hurried.enter("checkpoint.memory").error().text().find("\"total\""), std::string::npos);
}

// To whoever takes a deadline of his own, such as a driver's call.
TEST(JobSteps, SaysByWhenAStepMustBeOver) {
    using std::chrono::steady_clock;
    auto request = request_for();
    request.policy.timeouts[Phase::kDevices] = std::chrono::hours(1);
    request.policy.timeouts[Phase::kFreeze] = kForever;
    request.policy.timeouts[Phase::kTotal] = std::chrono::hours(2);
    JobSteps steps(request);
    ASSERT_TRUE(steps.enter("checkpoint.probe-devices"));
    const auto first = steps.deadline();
    EXPECT_LE(first, steady_clock::now() + std::chrono::hours(1));
    EXPECT_GT(first, steady_clock::now() + std::chrono::minutes(50));
    std::this_thread::sleep_for(milliseconds(20));
    ASSERT_TRUE(steps.enter("checkpoint.quiesce"));
    EXPECT_EQ(steps.deadline(), first) << "the phase is the same";
    EXPECT_LE(steps.deadline_of(Phase::kDevices), first + milliseconds(1));
    ASSERT_TRUE(steps.enter("checkpoint.freeze"));
    EXPECT_GT(steps.deadline(), steady_clock::now() + std::chrono::minutes(110)) << "that of the whole job";
    EXPECT_LE(steps.deadline(), steady_clock::now() + std::chrono::hours(2));
    request.policy.timeouts[Phase::kTotal] = kForever;
    EXPECT_EQ(JobSteps(request).deadline(), steady_clock::time_point::max());
}

TEST(JobSteps, ProgressOnlyRises) {
    for (JobType type : {JobType::kCheckpoint, JobType::kRestore}) {
        test::TemporaryDir dir;
        auto request = request_for();
        request.type = type;
        request.channel = dir.path() + "/s";
        std::vector<ProgressMessage> heard;
        auto channel = WorkerChannel::open(request.channel, [](pid_t, uint32_t) { return true; },
                                           [&](const ProgressMessage& message) { heard.push_back(message); });
        ASSERT_TRUE(channel);
        JobSteps steps(request);
        for (const char* step : {"checkpoint.resolve", "checkpoint.memory", "restore.open",
                                 "units.stage.start-unit", "restore.memory", "units.hand-over.main-pid"})
            ASSERT_TRUE(steps.enter(step));
        steps.moved(100, 100);
        ASSERT_TRUE(steps.enter("checkpoint.mark-ready"));
        channel->receive();
        ASSERT_EQ(heard.size(), 8u);
        for (size_t i = 1; i < heard.size(); ++i) EXPECT_GE(heard[i].progress, heard[i - 1].progress);
        EXPECT_EQ(heard[6].bytes, 100u);
        EXPECT_EQ(heard[7].step, "checkpoint.mark-ready");
        ASSERT_TRUE(steps.enter("restore.resume-devices"));
        steps.moved(100, 100);
        channel->receive();
        EXPECT_LE(heard.back().progress, 1.0);
        ASSERT_EQ(steps.times().size(), 8u);
    }
}

TEST(JobSteps, StepsHaveTheirPhase) {
    EXPECT_EQ(place_of(JobType::kCheckpoint, "units.stop.write-drop-in").phase, Phase::kPrepare);
    EXPECT_EQ(place_of(JobType::kCheckpoint, "units.stop.stop-unit").phase, Phase::kStop);
    EXPECT_EQ(place_of(JobType::kCheckpoint, "checkpoint.seize").phase, Phase::kFreeze);
    EXPECT_EQ(place_of(JobType::kCheckpoint, "checkpoint.new-one").phase, Phase::kCollect);
    EXPECT_EQ(place_of(JobType::kRestore, "restore.fork").phase, Phase::kRebuild);
    EXPECT_EQ(place_of(JobType::kRestore, "units.stage.wait-helper").phase, Phase::kStart);
}

}  // namespace
}  // namespace checkpointd
