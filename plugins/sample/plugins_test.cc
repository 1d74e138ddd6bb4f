// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The sample plugin through the engine: a program that uses its device goes down and comes back.
#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <iterator>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include <fmt/core.h>

#include "core/base/scoped_fd.h"
#include "core/checkpoint/bare_process_test_util.h"
#include "core/checkpoint/checkpoint.h"
#include "core/restore/own_pids_test_util.h"
#include "core/restore/restore.h"
#include "core/transaction/journal.h"
#include "images/test_dir.h"
#include "plugins/host/plugins.h"

namespace checkpointd {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Names = std::vector<std::string>;

constexpr const char* kWholeDump[] = {"open", "probe", "quiesce", "prepare", "transfer", "complete"};

bool exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

// The program's side: a thread answers the device, the main thread counts.
[[noreturn]] void use_device(const std::string& folder) {
    become_bare_process();
    const std::string own = fmt::format("{}/{}", folder, getpid());
    std::ofstream(own) << "4711";
    std::atomic<bool> answers = false;
    std::thread device([&] {
        prctl(PR_SET_NAME, "device");
        answers = true;
        for (bool parked = false;; usleep(1000)) {
            if (exists(own + ".park") == parked)
                continue;
            parked = !parked;
            if (parked)
                std::ofstream(own + ".parked");
            else
                unlink((own + ".parked").c_str());
        }
    });
    for (int count = 0;; usleep(1000)) {
        std::ofstream(own + ".count.part") << (answers ? ++count : 0);
        rename((own + ".count.part").c_str(), (own + ".count").c_str());
    }
}

class SamplePlugin : public testing::Test {
  protected:
    void SetUp() override {
        if (geteuid() != 0)
            GTEST_SKIP() << "needs root";
        std::filesystem::create_directory(folder_);
        std::filesystem::create_directory(tmp_.path() + "/image");
        image_ = ScopedFd(open((tmp_.path() + "/image").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        pid_ = fork();
        if (pid_ == 0)
            use_device(folder_);
        wait_for([&] { return count() > 3; });
    }
    void TearDown() override {
        if (pid_ > 0)
            kill(pid_, SIGKILL);
        while (waitpid(-1, nullptr, __WALL) > 0) {
        }
    }

    static void wait_for(const std::function<bool()>& good) {
        for (int i = 0; i < 10000 && !good(); ++i)
            usleep(1000);
        ASSERT_TRUE(good());
    }
    std::string device(const char* suffix = "") const { return fmt::format("{}/{}{}", folder_, pid_, suffix); }
    int count() const {
        int number = 0;
        std::ifstream(device(".count")) >> number;
        return number;
    }
    void expect_running_and_unparked() {
        const int before = count();
        wait_for([&] { return count() > before && !exists(device(".parked")); });
        EXPECT_FALSE(exists(device(".park")));
        std::ifstream status(fmt::format("/proc/{}/status", pid_));
        const std::string text{std::istreambuf_iterator<char>(status), {}};
        EXPECT_THAT(text, HasSubstr("TracerPid:\t0\n"));
    }
    Names log() {
        Names lines;
        std::ifstream in(folder_ + "/log");
        for (std::string line; std::getline(in, line);)
            lines.push_back(line);
        in.close();
        unlink((folder_ + "/log").c_str());
        return lines;
    }
    PluginOptions options(const std::string& failing = {}) {
        PluginOptions options;
        options.directory = PLUGIN_DIR;
        options.policy["sample"].settings = {{"folder", folder_}};
        if (!failing.empty())
            options.policy["sample"].settings["fail"] = failing;
        options.image_dir_fd = image_.get();
        options.journal = journal_;
        return options;
    }
    Result<HeldForest> dump(Plugins* plugins) {
        CheckpointRequest request;
        request.target = TreeTarget{pid_};
        request.image_dir_fd = image_.get();
        request.plugins = plugins;
        CheckpointStats stats;
        return checkpoint(request, silent_, stats);
    }
    void dump_and_kill() {
        auto plugins = Plugins::for_checkpoint(options());
        ASSERT_TRUE(plugins) << plugins.error().text();
        auto held = dump(plugins->get());
        ASSERT_TRUE(held) << held.error().text();
        EXPECT_TRUE(exists(device(".parked"))) << "the device thread has run meanwhile";
        ASSERT_TRUE(held->kill());
        waitpid(pid_, nullptr, 0);
    }
    Result<BuiltForest> build(Plugins* plugins) {
        RestoreRequest request(silent_);
        request.image_dir_fd = image_.get();
        request.plugins = plugins;
        request.hooks.push_back({0, "plugins", [](void* all) { return static_cast<Plugins*>(all)->in_task(getpid()); },
                                 plugins});
        RestoreStats stats;
        return build_forest(request, stats);
    }

    images::TestDir tmp_;
    std::string folder_ = tmp_.path() + "/device";
    ScopedFd image_;
    SilentSteps silent_;
    Journal* journal_ = nullptr;
    pid_t pid_ = 0;
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

    auto plugins = Plugins::for_restore(options(), *listed);
    ASSERT_TRUE(plugins) << plugins.error().text();
    ASSERT_TRUE((*plugins)->probe({}, Plugins::Deadline::max()));
    auto built = build(plugins->get());
    ASSERT_TRUE(built) << built.error().text();
    ASSERT_TRUE(built->commit());
    EXPECT_THAT(log(), ElementsAre("open", "probe", "prepare", "transfer", "complete", "resume"));
    EXPECT_TRUE(exists(folder_ + "/in_task"));
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
        unlink((tmp_.path() + "/image/sample-device.txt").c_str());
    }
}

TEST_F(SamplePlugin, WhateverFailsInARestoreNothingIsLeft) {
    dump_and_kill();
    for (const std::string step : {"prepare", "transfer", "complete", "resume"}) {
        auto plugins = Plugins::for_restore(options(step), Names{"sample"});
        ASSERT_TRUE(plugins) << plugins.error().text();
        auto built = build(plugins->get());
        ASSERT_FALSE(built) << step;
        EXPECT_THAT(built.error().text(), HasSubstr("was told to fail")) << step;
        EXPECT_EQ(kill(pid_, 0), -1) << step;
    }
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

TEST_F(SamplePlugin, ADeadJobIsUndone) {
    UndoTable table;
    add_plugin_undo_kinds(table, PLUGIN_DIR);
    const std::string directory = tmp_.path() + "/undo";
    const pid_t job = fork();
    if (job == 0) {
        auto journal = Journal::create(directory, table);
        journal_ = &*journal;
        auto plugins = Plugins::for_checkpoint(options());
        auto held = dump(plugins->get());
        kill(getpid(), SIGKILL);
    }
    waitpid(job, nullptr, 0);
    EXPECT_TRUE(exists(device(".park")));
    auto replayed = Journal::replay(directory, table);
    ASSERT_TRUE(replayed) << replayed.error().text();
    EXPECT_TRUE(*replayed);
    EXPECT_EQ(log().back(), "undo");
    expect_running_and_unparked();
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
