// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The sample plugin through the engine: a program that uses its device goes down and comes back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <csignal>
#include <fstream>
#include <iterator>

#include "core/inject/loose_thread.h"
#include "core/restore/image_plugins.h"
#include "core/restore/own_pids_test_util.h"
#include "core/transaction/journal.h"
#include "plugins/host/plugin_library.h"
#include "plugins/sample/sample_test_util.h"

namespace checkpointd {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::UnorderedElementsAre;

constexpr const char* kWholeDump[] = {"open", "probe", "quiesce", "prepare", "transfer", "complete"};

class SamplePlugin : public SampleTest {
  protected:
    // As the plugin was told them, in no order.
    Names listed_images() const {
        std::ifstream in(folder_ + "/images");
        return {std::istream_iterator<std::string>(in), {}};
    }
};

TEST_F(SamplePlugin, GoesDownAndComesBackWithTheProcess) {
    dump_and_kill();
    Names dumped(std::begin(kWholeDump), std::end(kWholeDump));
    dumped.push_back("close");
    EXPECT_EQ(log(), dumped);
    const int before = count();
    unlink(device().c_str());
    auto listed = plugins_of_image(image_.get());
    ASSERT_TRUE(listed);
    EXPECT_THAT(listed->value(), ElementsAre("sample_plugin"));

    auto plugins = plugins_for_image(options(), Plugins::Deadline::max());
    ASSERT_TRUE(plugins) << plugins.error().text();
    auto built = build(plugins->get());
    ASSERT_TRUE(built) << built.error().text();
    ASSERT_TRUE(built->commit());
    EXPECT_THAT(log(), ElementsAre("open", "probe", "prepare", "transfer", "complete", "resume"));
    EXPECT_EQ(content_of(folder_ + "/in_task"), fmt::format("{}\n", pid_))
        << "it ran in the task, once";
    EXPECT_THAT(listed_images(), UnorderedElementsAre("sample-device.txt", "sample-files.txt"));
    std::string content;
    std::ifstream(device()) >> content;
    EXPECT_EQ(content, "4711");
    wait_for([&] { return count() > before; });
    expect_running_and_unparked();
}

TEST_F(SamplePlugin, IsResumedWhereTheProcessGoesOn) {
    auto plugins = Plugins::for_checkpoint(options());
    ASSERT_TRUE(plugins);
    auto held = dump(plugins->get());
    ASSERT_TRUE(held) << held.error().text();
    ASSERT_TRUE(held->resume());
    EXPECT_EQ(log().back(), "resume");
    expect_running_and_unparked();
}

TEST_F(SamplePlugin, WhateverFailsTheProcessGoesOn) {
    for (const std::string step : {"open", "probe", "quiesce", "prepare", "transfer", "complete"}) {
        auto plugins = Plugins::for_checkpoint(options(step));
        if (plugins) {
            auto held = dump(plugins->get());
            ASSERT_FALSE(held) << step;
            EXPECT_THAT(held.error().text(), HasSubstr("was told to fail")) << step;
        }
        EXPECT_EQ(bool(plugins), step != "open");
        plugins = tl::unexpected(Error{});
        const Names seen = log();
        EXPECT_EQ(std::count(seen.begin(), seen.end(), "resume"), step != "open" && step != "probe") << step;
        expect_running_and_unparked();
        clear_image();
    }
}

// What the step that failed had left of its time would not do.
TEST_F(SamplePlugin, IsGivenItsTimeToResume) {
    struct Refusing : FaultAt {
        using FaultAt::FaultAt;
        void giving_back(std::chrono::microseconds most) override { time = most; }
        std::chrono::microseconds time{0};
    } steps("checkpoint.write");
    PluginOptions slow = options();
    slow.policy["sample"].settings["undo-time"] = "3600000";
    auto plugins = Plugins::for_checkpoint(slow);
    ASSERT_TRUE(plugins);
    ASSERT_FALSE(dump(plugins->get(), steps));
    EXPECT_TRUE(steps.came_there());
    EXPECT_GE(steps.time, std::chrono::minutes(5));
    EXPECT_EQ(log().back(), "resume");
    expect_running_and_unparked();
}

TEST_F(SamplePlugin, WhateverFailsInARestoreNothingIsLeft) {
    dump_and_kill();
    const std::string told = "was told to fail";
    const std::pair<std::string, std::string> steps[] = {{"prepare", told},
                                                         {"in_task", "Input/output error"},
                                                         {"transfer", told},
                                                         {"complete", told},
                                                         {"resume", told}};
    for (const auto& [step, expected] : steps) {
        auto plugins = plugins_for_image(options(step), Plugins::Deadline::max());
        ASSERT_TRUE(plugins) << plugins.error().text();
        auto built = build(plugins->get());
        ASSERT_FALSE(built) << step;
        EXPECT_THAT(built.error().text(), HasSubstr(expected)) << step;
        EXPECT_EQ(kill(pid_, 0), -1) << step;
        EXPECT_EQ(waitpid(-1, nullptr, __WALL | WNOHANG), -1) << step;
    }
}

// Nothing has been made yet.
TEST_F(SamplePlugin, WhateverFailsBeforeARestoreIsTold) {
    dump_and_kill();
    for (const std::string step : {"open", "probe"}) {
        (void)log();
        auto plugins = plugins_for_image(options(step), Plugins::Deadline::max());
        ASSERT_FALSE(plugins) << step;
        EXPECT_THAT(plugins.error().text(), HasSubstr("was told to fail")) << step;
        EXPECT_EQ(log().back(), "close") << step;
        EXPECT_FALSE(file_exists(folder_ + "/in_task")) << step;
    }
    std::filesystem::rename(tmp_.path() + "/image/sample-device.txt",
                            tmp_.path() + "/image/other-device.txt");
    auto plugins = plugins_for_image(options(), Plugins::Deadline::max());
    ASSERT_FALSE(plugins);
    EXPECT_THAT(plugins.error().text(), HasSubstr("sample-device.txt: is not in the image"));
    EXPECT_THAT(listed_images(), ElementsAre("sample-files.txt")) << "not what others have";
}

// Of one step nobody has any time; from another on there is half a second.
class Hurried : public SilentSteps {
  public:
    explicit Hurried(std::string step, std::chrono::milliseconds time = std::chrono::milliseconds(-1))
        : step_(std::move(step)), time_(time) {}
    Result<void> enter(std::string_view step) override {
        if (step == step_)
            deadline_ = std::chrono::steady_clock::now() + time_;
        else if (time_.count() < 0)
            deadline_ = Plugins::Deadline::max();
        return {};
    }
    Plugins::Deadline deadline() const override { return deadline_; }

  private:
    std::string step_;
    std::chrono::milliseconds time_;
    Plugins::Deadline deadline_ = Plugins::Deadline::max();
};

TEST_F(SamplePlugin, HasTheDeadlineOfTheStepAndHasFailedWhereItIsLate) {
    const std::pair<const char*, const char*> expected[] = {
        {"checkpoint.probe-devices", "took too long to carry this"},
        {"checkpoint.quiesce", "took too long to quiesce"},
        // It looks at its deadline itself; or finds that the device's thread has answered by then,
        // too late.
        {"checkpoint.devices", "(the device thread does not answer|took too long to prepare)"},
        {"checkpoint.device-files", "took too long to dump a file"},
        {"checkpoint.finish", "took too long to"}};
    for (const auto& [step, told] : expected) {
        auto plugins = Plugins::for_checkpoint(options());
        ASSERT_TRUE(plugins);
        Hurried steps(step);
        auto held = dump(plugins->get(), steps);
        ASSERT_FALSE(held) << step;
        EXPECT_EQ(held.error().kind, ErrorKind::kTimeout) << step;
        EXPECT_THAT(held.error().text(), testing::ContainsRegex(told)) << step;
        EXPECT_EQ(log().back() == "resume", step != std::string("checkpoint.probe-devices")) << step;
        expect_running_and_unparked();
        clear_image();
    }
}

// A deadline that passes while the tasks are built is not that of their devices.
TEST_F(SamplePlugin, DevicesHaveATimeOfTheirOwnInARestore) {
    struct Late : SilentSteps {
        Result<void> enter(std::string_view step) override {
            if (step == "restore.complete-devices")
                std::this_thread::sleep_until(deadline + std::chrono::milliseconds(50));
            return {};
        }
        const Plugins::Deadline deadline =
            std::chrono::steady_clock::now() + std::chrono::seconds(8);
    };
    dump_and_kill();
    auto plugins = Plugins::for_restore(options(), Names{"sample"});
    ASSERT_TRUE(plugins) << plugins.error().text();
    ASSERT_TRUE((*plugins)->probe({}, Plugins::Deadline::max()));
    Late late;
    RestoreRequest request(late);
    request.image_dir_fd = image_.get();
    request.plugins = plugins->get();
    request.deadline = late.deadline;
    RestoreStats stats;
    auto built = build_forest(request, stats);
    ASSERT_TRUE(built) << built.error().text();
    ASSERT_TRUE(built->commit());
    expect_running_and_unparked();
}

TEST_F(SamplePlugin, NothingComesAliveByMemoryThatIsNotGood) {
    dump_and_kill();
    (void)log();
    auto plugins = Plugins::for_restore(options(), Names{"sample"});
    ASSERT_TRUE(plugins) << plugins.error().text();
    SilentSteps steps;
    RestoreRequest request(steps);
    request.image_dir_fd = image_.get();
    request.plugins = plugins->get();
    request.check_memory = [this]() -> Result<void> {
        EXPECT_THAT(log(), ElementsAre("open", "prepare", "transfer", "complete"));
        return fail(ErrorKind::kBadImage, "pages-1.img", "is damaged");
    };
    RestoreStats stats;
    auto built = build_forest(request, stats);
    ASSERT_FALSE(built);
    EXPECT_THAT(built.error().text(), HasSubstr("is damaged"));
    plugins->reset();
    EXPECT_THAT(log(), ElementsAre("close"));
    EXPECT_EQ(kill(pid_, 0), -1);
}

TEST_F(SamplePlugin, IsLeftOutWhereNobodyUsesIt) {
    rename(device().c_str(), device(".aside").c_str());
    auto plugins = Plugins::for_checkpoint(options());
    ASSERT_TRUE(plugins);
    auto held = dump(plugins->get());
    ASSERT_TRUE(held) << held.error().text();
    EXPECT_THAT(log(), ElementsAre("open", "probe", "close"));
    auto listed = plugins_of_image(image_.get());
    ASSERT_TRUE(listed);
    EXPECT_THAT(listed->value(), ElementsAre());
}

// A transfer that has begun and is far from its end.
class Transferring : public SampleTest {
  protected:
    // Does something once the job has come to a step and the plugin transfers.
    class Then : public Steps {
      public:
        Then(std::string step, std::string folder, std::function<Result<void>()> act)
            : step_(std::move(step)), log_(folder + "/log"), act_(std::move(act)) {}
        Result<void> enter(std::string_view step) override {
            if (step != step_)
                return {};
            wait_for([&] { return content_of(log_).find("transfer waits") != std::string::npos; });
            return act_();
        }

      private:
        std::string step_, log_;
        std::function<Result<void>()> act_;
    };

    PluginOptions waiting() {
        PluginOptions waiting = options();
        waiting.policy["sample"].settings["transfer"] = "waits";
        return waiting;
    }
    Then go_at(const std::string& step) {
        return Then(step, folder_, [this] {
            std::ofstream(folder_ + "/go") << "x";
            return Result<void>();
        });
    }
    Then fail_at(const std::string& step) {
        return Then(step, folder_,
                    [] { return Result<void>(fail(ErrorKind::kSystem, "job", "injected fault")); });
    }
};

TEST_F(Transferring, EndsAtOnceWhereTheJobFails) {
    auto plugins = Plugins::for_checkpoint(waiting());
    ASSERT_TRUE(plugins);
    auto steps = fail_at("checkpoint.memory");
    auto held = dump(plugins->get(), steps);
    ASSERT_FALSE(held);
    EXPECT_THAT(held.error().line(), HasSubstr("injected fault"));
    EXPECT_THAT(log(), ElementsAre("open", "probe", "quiesce", "prepare", "transfer waits",
                                   "transfer is stopped", "resume"));
    expect_running_and_unparked();
}

// The tasks get their devices back all the same: resume() of the plugin refuses where it is told to
// stop.
TEST_F(Transferring, EndsAtOnceWhereTheJobIsCancelled) {
    const ScopedFd cancel(eventfd(0, EFD_CLOEXEC));
    auto cancelled = waiting();
    cancelled.cancel_fd = cancel.get();
    auto plugins = Plugins::for_checkpoint(cancelled);
    ASSERT_TRUE(plugins);
    Then steps("checkpoint.memory", folder_, [&] {
        eventfd_write(cancel.get(), 1);
        return Result<void>();
    });
    auto held = dump(plugins->get(), steps);
    ASSERT_FALSE(held);
    EXPECT_THAT(held.error().line(), HasSubstr("nobody wants it"));
    EXPECT_EQ(held.error().kind, ErrorKind::kCancelled);
    EXPECT_THAT(log(), ElementsAre("open", "probe", "quiesce", "prepare", "transfer waits",
                                   "transfer is stopped", "resume"));
    expect_running_and_unparked();
}

TEST_F(Transferring, EndsWhereItsTimeIsOver) {
    const std::chrono::milliseconds half(500);
    auto plugins = Plugins::for_checkpoint(waiting());
    ASSERT_TRUE(plugins);
    Hurried hurried("checkpoint.write", half);
    auto held = dump(plugins->get(), hurried);
    ASSERT_FALSE(held);
    EXPECT_EQ(held.error().kind, ErrorKind::kTimeout) << held.error().text();
    EXPECT_THAT(log(), ElementsAre("open", "probe", "quiesce", "prepare", "transfer waits",
                                   "transfer is stopped", "resume"));
    expect_running_and_unparked();
    plugins->reset();
    clear_image();
    dump_and_kill();
    (void)log();
    auto restored = plugins_for_image(waiting(), Plugins::Deadline::max());
    ASSERT_TRUE(restored) << restored.error().text();
    Hurried late("restore.complete-devices", half);
    auto built = build(restored->get(), late);
    ASSERT_FALSE(built);
    EXPECT_EQ(built.error().kind, ErrorKind::kTimeout) << built.error().text();
    restored->reset();
    EXPECT_THAT(log(), ElementsAre("open", "probe", "prepare", "transfer waits", "transfer is stopped", "close"));
    EXPECT_EQ(kill(pid_, 0), -1);
}

TEST_F(Transferring, IsNotDisturbedWhereNothingFails) {
    auto plugins = Plugins::for_checkpoint(waiting());
    ASSERT_TRUE(plugins);
    auto steps = go_at("checkpoint.memory");
    auto held = dump(plugins->get(), steps);
    ASSERT_TRUE(held) << held.error().text();
    ASSERT_TRUE(held->resume());
    EXPECT_THAT(log(), ElementsAre("open", "probe", "quiesce", "prepare", "transfer waits",
                                   "transfer", "complete", "resume"));
    expect_running_and_unparked();
}

TEST_F(Transferring, EndsAtOnceWhereARestoreFails) {
    dump_and_kill();
    (void)log();
    for (const std::string step : {"restore.registers", "restore.complete-devices"}) {
        auto plugins = plugins_for_image(waiting(), Plugins::Deadline::max());
        ASSERT_TRUE(plugins) << plugins.error().text();
        auto steps = fail_at(step);
        ASSERT_FALSE(build(plugins->get(), steps));
        plugins->reset();
        EXPECT_THAT(log(), ElementsAre("open", "probe", "prepare", "transfer waits",
                                       "transfer is stopped", "close"));
        EXPECT_EQ(kill(pid_, 0), -1);
    }
    auto plugins = plugins_for_image(waiting(), Plugins::Deadline::max());
    ASSERT_TRUE(plugins) << plugins.error().text();
    auto steps = go_at("restore.registers");
    auto built = build(plugins->get(), steps);
    ASSERT_TRUE(built) << built.error().text();
    ASSERT_TRUE(built->commit());
    EXPECT_EQ(log().back(), "resume");
    expect_running_and_unparked();
}

// A job that dies with the device in its hands, and what becomes of that.
class DeadJob : public SampleTest {
  protected:
    void die(const PluginOptions& options) {
        const pid_t job = fork();
        if (job == 0) {
            auto journal = Journal::create(directory_, table_);
            journal_ = &*journal;
            PluginOptions with_journal = options;
            with_journal.journal = journal_;
            auto plugins = Plugins::for_checkpoint(with_journal);
            auto held = plugins ? dump(plugins->get()) : tl::unexpected(std::move(plugins).error());
            EXPECT_TRUE(held) << held.error().text();
            kill(getpid(), SIGKILL);
        }
        waitpid(job, nullptr, 0);
        EXPECT_TRUE(file_exists(device(".park")));
    }
    void expect_undone(const UndoTable& table) {
        auto replayed = Journal::replay(directory_, table);
        ASSERT_TRUE(replayed) << replayed.error().text();
        EXPECT_TRUE(*replayed);
        EXPECT_EQ(log().back(), "undo");
        expect_running_and_unparked();
    }
    static UndoTable table_for(const char* directory, std::chrono::microseconds least = kLeastUndoTime) {
        UndoTable table;
        add_plugin_undo_kinds(table, directory, least);
        add_mask_undo_kind(table);
        return table;
    }

    UndoTable table_ = table_for(PLUGIN_DIR);
    std::string directory_ = tmp_.path() + "/undo";
};

constexpr std::chrono::milliseconds kShort{1};

TEST_F(DeadJob, IsUndone) {
    die(options());
    EXPECT_EQ(Journal::replay_time(directory_, table_for(PLUGIN_DIR, std::chrono::hours(1))), std::chrono::hours(1));
    expect_undone(table_);
    EXPECT_EQ(Journal::replay_time(directory_, table_), std::chrono::seconds(0));
}

TEST_F(DeadJob, HasTheTimeThatItsPluginSays) {
    auto slow = options();
    slow.policy["sample"].settings["undo-time"] = "300";
    die(slow);
    const UndoTable table = table_for(PLUGIN_DIR, kShort);
    EXPECT_EQ(Journal::replay_time(directory_, table), std::chrono::milliseconds(60300));
    expect_undone(table);
}

// What lies beyond its size is not read, so it has what all have.
TEST_F(DeadJob, OfAnOlderPlugin) {
    auto older = options();
    older.directory = OLDER_PLUGIN_DIR;
    older.policy["sample"].settings["undo-time"] = "300";
    die(older);
    const UndoTable hasty = table_for(OLDER_PLUGIN_DIR, kShort);
    EXPECT_EQ(Journal::replay_time(directory_, hasty), kShort);
    auto cut = Journal::replay(directory_, hasty);
    ASSERT_FALSE(cut);
    EXPECT_THAT(cut.error().text(), HasSubstr("had too little time"));
    EXPECT_TRUE(file_exists(device(".park"))) << "and the record stays";
    expect_undone(table_for(OLDER_PLUGIN_DIR));
}

// So that resume() is not cut short either.
TEST_F(SamplePlugin, SaysHowLongWhatItHoldsMayTake) {
    UndoTable table;
    add_plugin_undo_kinds(table, PLUGIN_DIR);
    add_mask_undo_kind(table);
    auto journal = Journal::create(tmp_.path() + "/undo", table);
    journal_ = &*journal;
    auto slow = options();
    slow.policy["sample"].settings["undo-time"] = "500000";
    auto plugins = Plugins::for_checkpoint(slow);
    ASSERT_TRUE(plugins) << plugins.error().text();
    EXPECT_EQ((*plugins)->undo_time(), std::chrono::seconds(0));
    auto held = dump(plugins->get());
    ASSERT_TRUE(held) << held.error().text();
    EXPECT_EQ((*plugins)->undo_time(), std::chrono::seconds(560));
    EXPECT_EQ(journal->rollback_time(), std::chrono::seconds(560));
    ASSERT_TRUE(held->resume());
    EXPECT_EQ((*plugins)->undo_time(), std::chrono::seconds(0));
}

TEST_F(SamplePlugin, WhatAnImageNeedsMustBeHere) {
    auto absent = Plugins::for_restore(options(), Names{"sample_plugin", "tpu_plugin", "npu"});
    ASSERT_FALSE(absent);
    EXPECT_THAT(absent.error().text(), HasSubstr("plugin 'tpu': is not installed in "));
    EXPECT_THAT(absent.error().text(), HasSubstr("plugin 'npu': is not installed in "));

    auto off = options();
    off.policy["sample"].enabled = false;
    auto refused = Plugins::for_restore(off, Names{"sample"});
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().line(), HasSubstr("the policy switches it off"));

    auto without = options();
    without.policy["sample"].settings["folder"] = "/nowhere";
    auto nothing = Plugins::for_restore(without, Names{"sample"});
    ASSERT_FALSE(nothing);
    EXPECT_THAT(nothing.error().line(), HasSubstr("its device is not here"));

    // An old image says nothing: all are tried, and what has no device stays out. An empty list means none.
    EXPECT_TRUE(Plugins::for_restore(without, std::nullopt).value()->empty());
    EXPECT_TRUE(Plugins::for_restore(options(), Names{}).value()->empty());
    EXPECT_FALSE(Plugins::for_restore(options(), std::nullopt).value()->empty());
}

TEST_F(SamplePlugin, PluginsForCriuAreLeftOut) {
    const std::string directory = tmp_.path() + "/plugins";
    mkdir(directory.c_str(), 0700);
    std::filesystem::copy(PLUGIN_FOR_CRIU, directory + "/tpu.so");
    std::filesystem::create_symlink(PLUGIN_DIR "/sample.so", directory + "/sample.so");
    const PluginFiles files = PluginFiles::list(directory);
    ASSERT_EQ(files.ours.size(), 1u);
    EXPECT_EQ(files.ours[0].name(), "sample");
    EXPECT_THAT(files.for_criu, ElementsAre(directory + "/tpu.so"));

    auto own = options();
    own.directory = directory;
    EXPECT_TRUE(Plugins::for_checkpoint(own));
    for (const bool has_looked : {false, true}) {
        if (has_looked)
            own.installed = files.ours;
        EXPECT_TRUE(Plugins::for_restore(own, Names{"sample_plugin"}));
        auto refused = Plugins::for_restore(own, Names{"tpu_plugin"});
        ASSERT_FALSE(refused);
        EXPECT_THAT(refused.error().line(), HasSubstr("/tpu.so: is a plugin for CRIU"));
    }
}

TEST_F(SamplePlugin, UnknownSettingsAreRefused) {
    auto wrong = options();
    wrong.policy["sample"].settings["colour"] = "red";
    auto refused = Plugins::for_checkpoint(wrong);
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().line(), HasSubstr("plugin 'sample': knows no setting 'colour'"));
}

}  // namespace
}  // namespace checkpointd

int main(int argc, char** argv) {
    return checkpointd::run_tests_with_own_pids(argc, argv);
}
