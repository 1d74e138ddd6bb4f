// SPDX-License-Identifier: LGPL-2.1-or-later
#include <cmath>
#include <csignal>
#include <fcntl.h>
#include <fstream>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "core/base/io.h"
#include "service/process_helpers.h"
#include "service/test_fakes.h"
#include "service/worker_channel.h"

namespace checkpointd {
namespace {

using test::bad_result;
using test::good_result;

JobRequest sample_request() {
    JobRequest request;
    request.id = 7;
    request.type = JobType::kRestore;
    request.unit = "redis.service";
    request.image_id = "redis.service/1";
    request.caller_uid = 1000;
    request.created_usec = 123456789;
    request.store_dir = "/s";
    request.channel = "/c";
    request.policy = Policy{}.for_unit("redis.service");
    request.policy.plugins["cuda"] = {false, {{"backend", "command"}}};
    request.policy.tell.socket = "/run/x";
    request.policy.timeouts[Phase::kTotal] = kForever;
    request.fault = Fault{"restore.open", Fault::Action::kEnospc};
    return request;
}

TEST(Protocol, RequestComesBack) {
    auto request = sample_request();
    auto again = parse_request(to_json(request));
    ASSERT_TRUE(again) << again.error().text();
    EXPECT_EQ(*again, request);
}

TEST(Protocol, ResultKeepsTheWholeError) {
    auto result = bad_result(ErrorKind::kUnsupported, "blockers \xff");
    result.error.causes.push_back(Error{ErrorKind::kConflict, "pid 5", "taken", "free it", 17, {}});
    result.steps = {{"checkpoint.resolve", 12}};
    auto again = parse_result(to_json(result));
    ASSERT_TRUE(again) << again.error().text();
    EXPECT_FALSE(again->ok);
    EXPECT_EQ(again->error.kind, ErrorKind::kUnsupported);
    ASSERT_EQ(again->error.causes.size(), 1u);
    EXPECT_EQ(again->error.causes[0].line(), result.error.causes[0].line());
    EXPECT_EQ(again->steps, result.steps);
}

TEST(Protocol, DamageIsAnError) {
    const std::string good = to_json(sample_request());
    for (size_t size = 0; size < good.size(); size += 7)
        EXPECT_FALSE(parse_request(good.substr(0, size))) << size;
    EXPECT_FALSE(parse_result("{\"version\": 1, \"ok\": \"yes\"}"));
    EXPECT_FALSE(parse_progress("{\"version\": 2}"));
    EXPECT_FALSE(parse_progress("[1]"));
    EXPECT_EQ(parse_error("out of memory").message, "out of memory");
}

TEST(Protocol, Faults) {
    EXPECT_EQ(parse_fault("step=a.b,action=kill").value(), (Fault{"a.b", Fault::Action::kKill}));
    for (const char* text : {"", "a.b", "step=,action=kill", "step=a", "step=a,action=dance"})
        EXPECT_FALSE(parse_fault(text)) << text;
}

TEST(Protocol, StoredAtomicallyAndPrivate) {
    test::TemporaryDir dir;
    ASSERT_TRUE(store_atomically(dir.path(), kResultFile, to_json(good_result("i"))));
    struct stat status {};
    ASSERT_EQ(stat((dir.path() + "/result.json").c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777, 0600u);
    auto result = load_result(dir.path());
    ASSERT_TRUE(result && *result);
    EXPECT_EQ((*result)->image_id, "i");
}

Options options(const std::string& key, OptionValue value) { return {{key, std::move(value)}}; }

TEST(Options, UnknownKeysAreNamed) {
    auto parsed = parse_checkpoint_options(options("snyc", {"b", true}), false);
    ASSERT_FALSE(parsed);
    EXPECT_EQ(parsed.error().kind, ErrorKind::kBadInput);
    EXPECT_EQ(parsed.error().text(),
              "option \"snyc\": is not known (known: mode, sync, timeout, x-fault)");
}

TEST(Options, TypesAreChecked) {
    auto parsed = parse_checkpoint_options(options("sync", {"s", std::string("yes")}), false);
    ASSERT_FALSE(parsed);
    EXPECT_EQ(parsed.error().text(), "option \"sync\": has type s (it must have type b)");
    EXPECT_FALSE(parse_restore_options(options("timeout", {"t", uint64_t{0}}), false));
    EXPECT_EQ(parse_restore_options(options("timeout", {"t", uint64_t{5}}), false)->timeout,
              Microseconds(5));
}

TEST(Options, FaultsOnlyWhereAllowed) {
    auto fault = options("x-fault", {"s", std::string("step=a,action=fail")});
    auto refused = parse_checkpoint_options(fault, false);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind, ErrorKind::kDenied);
    EXPECT_EQ(parse_checkpoint_options(fault, true)->fault->step, "a");
}

TEST(Options, UnitNames) {
    EXPECT_EQ(normalise_unit("redis").value(), "redis.service");
    EXPECT_EQ(normalise_unit("a@b\\x2d.service").value(), "a@b\\x2d.service");
    for (const char* name : {"", "../x", "a b", "a/b", "x.socket"})
        EXPECT_FALSE(normalise_unit(name)) << name;
}

TEST(JobState, OnlyGoesForward) {
    Job job(sample_request(), "/j");
    EXPECT_EQ(job.state(), JobState::kStarting);
    auto changed = job.apply({7, "restore.open", 0.5, 10, 20, 0});
    EXPECT_EQ(changed, (std::vector<std::string>{"State", "Phase", "Progress", "Bytes", "BytesTotal"}));
    EXPECT_EQ(job.state(), JobState::kRunning);
    EXPECT_TRUE(job.apply({7, "restore.open", 0.1, 10, 20, 0}).empty()) << "progress never falls";
    (void)job.apply({7, "restore.open", std::nan(""), 10, 20, 0});
    (void)job.apply({7, "restore.open", 55.0, 10, 20, 0});
    EXPECT_EQ(job.progress(), 1.0);
    EXPECT_FALSE(job.cancelling().empty());
    (void)job.apply({7, "restore.plan", 0.6, 10, 20, 0});
    EXPECT_EQ(job.state(), JobState::kCancelling);
    EXPECT_FALSE(job.finish(bad_result(ErrorKind::kCancelled, "gone"), 99).empty());
    EXPECT_EQ(job.state(), JobState::kCancelled);
    EXPECT_TRUE(job.finish(good_result("x"), 100).empty());
    EXPECT_TRUE(job.apply({7, "late", 1, 1, 1, 1}).empty());
    EXPECT_EQ(job.finished_usec(), 99u);
}

TEST(JobState, DeathIsExplained) {
    Job job(sample_request(), "/j");
    EXPECT_EQ(job.death(1000).kind, ErrorKind::kGone);
    (void)job.apply({7, "checkpoint.memory", 0.5, 0, 0, 500});
    EXPECT_EQ(job.death(499).kind, ErrorKind::kGone);
    EXPECT_EQ(job.death(500).kind, ErrorKind::kTimeout);
    EXPECT_NE(job.death(500).text().find("checkpoint.memory"), std::string::npos);
    (void)job.cancelling();
    EXPECT_EQ(job.death(500).kind, ErrorKind::kCancelled);
}

// Writes down what the bus would show.
class Recorder : public JobObserver {
  public:
    void job_new(const Job& job) override { note("new", job); }
    void job_changed(const Job& job, const std::vector<std::string>& properties) override {
        note("changed", job);
        for (const std::string& name : properties) log.back() += " " + name;
    }
    void job_removed(const Job& job) override { note("removed", job); }
    void job_forgotten(const Job& job) override { note("forgotten", job); }
    std::vector<std::string> log;

  private:
    void note(const std::string& what, const Job& job) {
        log.push_back(what + " " + std::to_string(job.id()) + " " + std::string(to_string(job.state())));
    }
};

class ManagerTest : public ::testing::Test {
  protected:
    ManagerTest() { make(); }
    void make() {
        manager_.reset();
        manager_ = std::make_unique<Manager>(config_, loop_, workers_, helpers_, images_);
        manager_->observe(&recorder_);
        auto started = manager_->start();
        EXPECT_TRUE(started) << started.error().text();
    }
    uint32_t start_checkpoint(const std::string& unit) {
        auto job = manager_->checkpoint(unit, {}, 0);
        EXPECT_TRUE(job) << job.error().text();
        return job ? (*job)->id() : 0;
    }
    // The next daemon: knows nothing but what is on disk.
    void restart() { make(); }

    test::TemporaryDir dir_;
    ManagerConfig config_ = test::test_config(dir_.path());
    EventLoop loop_;
    test::FakeWorkers workers_;
    test::FakeHelpers helpers_;
    test::FakeImages images_;
    Recorder recorder_;
    std::unique_ptr<Manager> manager_;
};

TEST_F(ManagerTest, AWholeJob) {
    uint32_t id = start_checkpoint("redis");
    auto request = load_request(workers_.started.at(id));
    ASSERT_TRUE(request);
    EXPECT_EQ(request->unit, "redis.service");
    manager_->progress({id, "checkpoint.memory", 0.5, 1, 2, 0});
    workers_.finish(id, good_result("redis.service/1"));
    EXPECT_EQ(manager_->find(id)->state(), JobState::kDone);
    EXPECT_EQ(manager_->find(id)->result().image_id, "redis.service/1");
    EXPECT_TRUE(helpers_.recovered.empty());
    ASSERT_EQ(recorder_.log.size(), 4u);
    EXPECT_EQ(recorder_.log[0], "new 1 starting");
    EXPECT_EQ(recorder_.log[1], "changed 1 running State Phase Progress Bytes BytesTotal");
    EXPECT_EQ(recorder_.log[2], "changed 1 done State FinishedUsec Result Progress");
    EXPECT_EQ(recorder_.log[3], "removed 1 done");
}

TEST_F(ManagerTest, SecondJobOnAUnitIsRefusedOthersRun) {
    uint32_t id = start_checkpoint("a");
    EXPECT_NE(start_checkpoint("b"), 0u);
    EXPECT_EQ(manager_->running(), 2u);
    auto second = manager_->checkpoint("a.service", {}, 0);
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().kind, ErrorKind::kConflict);
    EXPECT_NE(second.error().text().find("job 1"), std::string::npos);
    workers_.finish(id, bad_result(ErrorKind::kSystem, "no"));
    EXPECT_NE(start_checkpoint("a"), 0u);
}

TEST_F(ManagerTest, DeadWorkerIsRecoveredBeforeItsUnitIsFree) {
    helpers_.hold = true;
    uint32_t id = start_checkpoint("a");
    manager_->progress({id, "checkpoint.memory", 0.5, 1, 2, 0});
    workers_.die(id);
    EXPECT_EQ(manager_->find(id)->state(), JobState::kRecovering);
    EXPECT_FALSE(manager_->checkpoint("a", {}, 0));
    ASSERT_EQ(helpers_.recovered, std::vector<std::string>{workers_.started.at(id)});
    helpers_.let_go();
    EXPECT_EQ(manager_->find(id)->state(), JobState::kFailed);
    EXPECT_NE(manager_->find(id)->result().error.text().find("in step checkpoint.memory"),
              std::string::npos);
    EXPECT_NE(start_checkpoint("a"), 0u);
}

TEST_F(ManagerTest, WorkerThatNeverStartedFailsTheJob) {
    uint32_t id = start_checkpoint("a");
    workers_.die(id, Error{ErrorKind::kSystem, "PID 1", "says no", {}, 0, {}});
    EXPECT_EQ(manager_->find(id)->result().error.text(), "PID 1: says no");
}

TEST_F(ManagerTest, FailedRecoveryIsNeverSuccess) {
    helpers_.recovery = fail(ErrorKind::kSystem, "drop-in", "cannot remove");
    uint32_t id = start_checkpoint("a");
    std::filesystem::create_directories(workers_.started.at(id) + "/undo");
    workers_.finish(id, good_result("i"));
    EXPECT_EQ(manager_->find(id)->state(), JobState::kFailed);
    EXPECT_NE(manager_->find(id)->result().error.text().find("drop-in: cannot remove"),
              std::string::npos);
}

TEST_F(ManagerTest, CancelReachesTheWorkerAlsoWhileItStarts) {
    uint32_t id = start_checkpoint("a");
    ASSERT_TRUE(manager_->cancel(id));
    workers_.cancelled.clear();  // PID 1 had no process yet: the signal was lost
    manager_->progress({id, "checkpoint.resolve", 0, 0, 0, 0});
    EXPECT_TRUE(workers_.cancelled.contains(id));
    workers_.finish(id, bad_result(ErrorKind::kCancelled, "was cancelled"));
    EXPECT_EQ(manager_->find(id)->state(), JobState::kCancelled);
    EXPECT_FALSE(manager_->cancel(id));
    EXPECT_EQ(manager_->cancel(999).error().kind, ErrorKind::kNotFound);
}

TEST_F(ManagerTest, RestartedDaemonAdoptsFindsAndRecovers) {
    uint32_t running = start_checkpoint("running");
    uint32_t finished = start_checkpoint("finished");
    uint32_t dead = start_checkpoint("dead");
    ASSERT_TRUE(store_atomically(workers_.started.at(finished), kResultFile,
                                 to_json(good_result("finished.service/1"))));
    workers_.alive = {running};
    restart();
    EXPECT_EQ(manager_->find(running)->state(), JobState::kStarting);
    EXPECT_EQ(manager_->find(finished)->state(), JobState::kDone);
    EXPECT_FALSE(workers_.adopted.contains(finished)) << "nobody has to be asked about it";
    EXPECT_EQ(manager_->find(dead)->state(), JobState::kFailed);
    EXPECT_EQ(helpers_.recovered.size(), 1u);
    EXPECT_FALSE(manager_->checkpoint("running", {}, 0));
    EXPECT_EQ(start_checkpoint("new"), dead + 1) << "ids are not given twice";
    workers_.finish(running, good_result("running.service/1"));
    EXPECT_EQ(manager_->find(running)->state(), JobState::kDone);
}

TEST_F(ManagerTest, RestoreChoosesTheNewestReadyImage) {
    images_.add("a.service/1", "a.service", "ready");
    images_.add("a.service/2", "a.service", "ready");
    images_.add("a.service/3", "a.service", "consumed");
    images_.add("b.service/1", "b.service", "consumed");
    auto job = manager_->restore("a", {}, 0);
    ASSERT_TRUE(job) << job.error().text();
    EXPECT_EQ((*job)->request().image_id, "a.service/2");
    auto none = manager_->restore("b", {}, 0);
    ASSERT_FALSE(none);
    EXPECT_NE(none.error().text().find("b.service/1 is consumed"), std::string::npos);
    EXPECT_EQ(manager_->restore("c", {}, 0).error().kind, ErrorKind::kNotFound);
    EXPECT_EQ((*manager_->restore("b.service/1", {}, 0))->request().unit, "b.service");
}

TEST_F(ManagerTest, OnlyWhatIsEnabledIsRevived) {
    images_.add("a.service/1", "a.service", "ready");
    auto refused = manager_->revive("a.service", 0);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().text().find("not enabled"), std::string::npos);
    EXPECT_TRUE(workers_.started.empty());
    manager_->enable("a", [](Result<std::string> done) { EXPECT_TRUE(done) << done.error().text(); });
    auto job = manager_->revive("a.service", 0);
    ASSERT_TRUE(job) << job.error().text();
    EXPECT_TRUE((*job)->request().at_gate);
    EXPECT_EQ((*job)->request().image_id, "a.service/1");
    EXPECT_EQ(*manager_->revive("a.service", 0), *job) << "a gate that asks again gets the same job";
    workers_.finish((*job)->id(), good_result("a.service/1"));
    EXPECT_TRUE(manager_->disable("a"));
    EXPECT_FALSE(manager_->revive("a.service", 0));
    EXPECT_EQ(manager_->revive("none.service", 0).error().kind, ErrorKind::kNotFound);
}

TEST_F(ManagerTest, ThePolicyAndSocketsEnableToo) {
    std::filesystem::create_directories(config_.admin_policy_dir);
    std::ofstream(config_.admin_policy_dir + "/policy.yaml")
        << "units: {\"p*.service\": {restore-at-boot: yes}}\n";
    make();
    images_.add("p.service/1", "p.service", "ready");
    images_.add("s.service/1", "s.service", "ready");
    images_.all.front().wakeable = true;
    images_.add("x.service/1", "x.service", "consumed");
    EXPECT_TRUE(manager_->revive("p.service", 0));
    EXPECT_TRUE(manager_->revive("s.service", 0));
    EXPECT_EQ(manager_->disable("p").error().kind, ErrorKind::kConflict);
    manager_->enable("early", [](Result<std::string> done) { EXPECT_FALSE(done); });
    manager_->enable("later", [](Result<std::string> done) { EXPECT_TRUE(done); });
    std::string seen;
    const auto units = manager_->units();
    ASSERT_TRUE(units);
    for (const UnitSummary& unit : *units)
        seen += fmt::format("{} {} {}; ", unit.unit, unit.enabled, unit.image);
    EXPECT_EQ(seen, "later.service enabled ; p.service policy p.service/1; s.service disabled s.service/1; "
                    "x.service disabled ; ");
}

TEST_F(ManagerTest, OneReloadAfterTheLastRevival) {
    config_.reload_delay = std::chrono::milliseconds(1);
    make();
    for (const char* unit : {"a.service", "b.service"}) EXPECT_FALSE(manager_->revive(unit, 0));
    for (int i = 0; i < 100 && workers_.reloads == 0; ++i)
        ASSERT_TRUE(loop_.run_once(std::chrono::milliseconds(5)));
    EXPECT_EQ(workers_.reloads, 1);
}

TEST_F(ManagerTest, ReadyImagesAreRemovedOnlyByForce) {
    images_.add("a.service/1", "a.service", "ready");
    std::optional<Error> error;
    auto done = [&](Result<std::string> result) {
        error = result ? std::nullopt : std::optional<Error>(result.error());
    };
    manager_->remove_image("a.service/1", {false}, done);
    ASSERT_TRUE(error);
    EXPECT_EQ(error->kind, ErrorKind::kConflict);
    EXPECT_TRUE(helpers_.removed.empty());
    manager_->remove_image("a.service/1", {true}, done);
    EXPECT_FALSE(error);
    EXPECT_EQ(helpers_.removed.size(), 1u);
}

TEST_F(ManagerTest, FinishedJobsAreForgottenAndTheirDirectoryGoes) {
    config_.linger = std::chrono::milliseconds(1);
    make();
    uint32_t id = start_checkpoint("a");
    std::string dir = workers_.started.at(id);
    workers_.finish(id, good_result("i"));
    ASSERT_NE(manager_->find(id), nullptr);
    for (int i = 0; i < 100 && manager_->find(id); ++i)
        ASSERT_TRUE(loop_.run_once(std::chrono::milliseconds(5)));
    EXPECT_EQ(manager_->find(id), nullptr);
    EXPECT_FALSE(std::filesystem::exists(dir));
}

TEST_F(ManagerTest, IdleOnlyWithoutJobs) {
    std::filesystem::create_directories(config_.admin_policy_dir);
    std::ofstream(config_.admin_policy_dir + "/policy.yaml") << "idle-timeout: 1ms\n";
    make();
    bool idle = false;
    manager_->on_idle([&] { idle = true; });
    uint32_t id = start_checkpoint("a");
    for (int i = 0; i < 10; ++i) ASSERT_TRUE(loop_.run_once(std::chrono::milliseconds(2)));
    EXPECT_FALSE(idle);
    workers_.finish(id, good_result("i"));
    for (int i = 0; i < 100 && !idle; ++i) ASSERT_TRUE(loop_.run_once(std::chrono::milliseconds(2)));
    EXPECT_TRUE(idle);
}

TEST_F(ManagerTest, BadPolicyIsRefusedAndTheOldOneStays) {
    std::filesystem::create_directories(config_.admin_policy_dir);
    std::ofstream(config_.admin_policy_dir + "/policy.yaml") << "defaults: {kep: 4}\n";
    EXPECT_FALSE(manager_->reload_policy());
    EXPECT_EQ(manager_->policy().for_unit("a").keep, 1u);
    std::ofstream(config_.admin_policy_dir + "/policy.yaml") << "defaults: {keep: 4}\n";
    EXPECT_TRUE(manager_->reload_policy());
    EXPECT_EQ(manager_->policy().for_unit("a").keep, 4u);
}

// Real datagrams between real processes: only who is verified is heard, and a daemon that was started
// anew hears the same worker.
TEST(WorkerChannel, HearsTheWorkerAlsoAfterARestart) {
    test::TemporaryDir dir;
    const std::string path = dir.path() + "/worker.sock";
    std::vector<ProgressMessage> heard;
    pid_t allowed = getpid();
    auto verify = [&](pid_t pid, uint32_t job) { return pid == allowed && job == 3; };
    auto sink = [&](const ProgressMessage& message) { heard.push_back(message); };
    ProgressSender sender(path);
    const ProgressMessage message{3, "checkpoint.memory", 0.25, 1, 4, 5};
    sender.send(message);  // nobody is there: no error
    for (int round = 1; round <= 2; ++round) {
        auto channel = WorkerChannel::open(path, verify, sink);
        ASSERT_TRUE(channel) << channel.error().text();
        sender.send(message);
        sender.send({4, "x", 0, 0, 0, 0});
        channel->receive();
        ASSERT_EQ(heard.size(), static_cast<size_t>(round));
        EXPECT_EQ(heard.back(), message);
    }
    auto channel = WorkerChannel::open(path, verify, sink);
    pid_t child = fork();
    if (child == 0) {
        ProgressSender(path).send(message);
        _exit(0);
    }
    waitpid(child, nullptr, 0);
    channel->receive();
    EXPECT_EQ(heard.size(), 2u) << "another process claimed to be the worker";
}

class HelpersTest : public ::testing::Test {
  protected:
    // A program that answers like the worker's binary.
    std::string script(const std::string& body) {
        const std::string path = dir_.path() + "/helper";
        std::ofstream(path) << "#!/bin/sh\n" << body << "\n";
        chmod(path.c_str(), 0700);
        return path;
    }
    Result<std::string> ask(const std::string& program) {
        ProcessHelpers helpers(loop_, program, "/store");
        std::optional<Result<std::string>> answer;
        helpers.explain("u/1", [&](Result<std::string> result) { answer = std::move(result); });
        for (int i = 0; i < 6000 && !answer; ++i)
            EXPECT_TRUE(loop_.run_once(std::chrono::milliseconds(10)));
        return answer ? *answer : fail(ErrorKind::kTimeout, "test", "no answer");
    }
    test::TemporaryDir dir_;
    EventLoop loop_;
};

TEST_F(HelpersTest, AnswersAndErrorsComeBack) {
    EXPECT_EQ(ask(script("echo \"$1 $2 $3\"")).value(), "explain /store u/1\n");
    auto error = ask(script("echo '" + to_json(Error{ErrorKind::kBadImage, "i", "bad", {}, 0, {}}) +
                            "'; exit 1"));
    ASSERT_FALSE(error);
    EXPECT_EQ(error.error().kind, ErrorKind::kBadImage);
    EXPECT_NE(ask(script("kill -9 $$")).error().text().find("signal 9"), std::string::npos);
    EXPECT_FALSE(ask("/nonexistent/helper"));
    EXPECT_EQ(ask(script("head -c 300000 /dev/zero")).value().size(), 300000u);
}

}  // namespace
}  // namespace checkpointd
