// SPDX-License-Identifier: LGPL-2.1-or-later
//
// For tests of the sample plugin: a program that uses its device, and all that takes it down and up.
#pragma once

#include <fcntl.h>
#include <filesystem>
#include <functional>
#include <gtest/gtest.h>
#include <string>
#include <sys/types.h>
#include <vector>

#include "core/base/scoped_fd.h"
#include "core/checkpoint/checkpoint.h"
#include "core/restore/restore.h"
#include "images/test_dir.h"
#include "plugins/host/plugins.h"

namespace checkpointd {

bool file_exists(const std::string& path);
std::string content_of(const std::string& path);

// The program's side: a thread answers the device, the main thread counts, and does `each_time`. Called in a process that
// has opened FOLDER/PID.
[[noreturn]] void use_device(const std::string& folder, const std::function<void()>& each_time = [] {});

class SampleTest : public testing::Test {
  protected:
    using Names = std::vector<std::string>;

    void SetUp() override;
    void TearDown() override;
    // What the victim runs; by default it uses the device, and nothing else.
    [[noreturn]] virtual void run_victim();

    static void wait_for(const std::function<bool()>& good);
    std::string device(const char* suffix = "") const;
    int count() const;
    void expect_running_and_unparked();
    // What the plugin has noted since the last call.
    Names log();
    PluginOptions options(const std::string& failing = {});
    Result<HeldForest> dump(Plugins* plugins, Steps& steps);
    Result<HeldForest> dump(Plugins* plugins) { return dump(plugins, silent_); }
    void dump_and_kill();
    Result<BuiltForest> build(Plugins* plugins, Steps& steps);
    Result<BuiltForest> build(Plugins* plugins) { return build(plugins, silent_); }
    // Of a dump that came to nothing.
    void clear_image();

    images::TestDir tmp_;
    std::string folder_ = tmp_.path() + "/device";
    ScopedFd image_;
    SilentSteps silent_;
    Journal* journal_ = nullptr;
    pid_t pid_ = 0;
};

// Fails, or kills the process, at one step.
class FaultAt : public Steps {
  public:
    explicit FaultAt(std::string step, bool kills = false) : step_(std::move(step)), kills_(kills) {}
    Result<void> enter(std::string_view step) override;
    bool came_there() const { return came_there_; }

  private:
    std::string step_;
    bool kills_;
    bool came_there_ = false;
};

}  // namespace checkpointd
