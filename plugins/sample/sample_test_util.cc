// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/sample/sample_test_util.h"

#include <csignal>
#include <fstream>
#include <gmock/gmock.h>
#include <iterator>
#include <pthread.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include <fmt/core.h>

#include "core/checkpoint/bare_process_test_util.h"
#include "plugins/sample/device/device_thread.h"

namespace checkpointd {

bool file_exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

std::string content_of(const std::string& path) {
    std::ifstream in(path);
    return {std::istreambuf_iterator<char>(in), {}};
}

[[noreturn]] void use_device(const std::string& folder, const std::function<void()>& each_time) {
    const std::string own = fmt::format("{}/{}", folder, getpid());
    std::ofstream(own) << "4711";
    std::thread device(sample_device_thread, own.c_str());
    pthread_setname_np(device.native_handle(), "device");  // it may not have come to that yet
    for (int count = 0;; usleep(1000)) {
        each_time();
        std::ofstream(own + ".count.part") << ++count;
        rename((own + ".count.part").c_str(), (own + ".count").c_str());
    }
}

void SampleTest::SetUp() {
    if (geteuid() != 0)
        GTEST_SKIP() << "needs root";
    std::filesystem::create_directory(folder_);
    std::filesystem::create_directory(tmp_.path() + "/image");
    image_ = ScopedFd(open((tmp_.path() + "/image").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    pid_ = fork();
    if (pid_ == 0) {
        become_bare_process();
        run_victim();
    }
    wait_for([&] { return count() > 3; });
}

void SampleTest::TearDown() {
    if (pid_ > 0)
        kill(pid_, SIGKILL);
    while (waitpid(-1, nullptr, __WALL) > 0) {
    }
}

void SampleTest::run_victim() { use_device(folder_); }

void SampleTest::wait_for(const std::function<bool()>& good) {
    for (int i = 0; i < 60'000; ++i) {
        if (good())
            return;  // not to be asked twice: files that programs write over are empty for a moment
        usleep(1000);
    }
    FAIL() << "waited a minute in vain";
}

std::string SampleTest::device(const char* suffix) const { return fmt::format("{}/{}{}", folder_, pid_, suffix); }

int SampleTest::count() const {
    int number = 0;
    std::ifstream(device(".count")) >> number;
    return number;
}

void SampleTest::expect_running_and_unparked() {
    const int before = count();
    wait_for([&] { return count() > before && !file_exists(device(".parked")); });
    EXPECT_FALSE(file_exists(device(".park")));
    EXPECT_THAT(content_of(fmt::format("/proc/{}/status", pid_)), testing::HasSubstr("TracerPid:\t0\n"));
}

SampleTest::Names SampleTest::log() {
    Names lines;
    std::ifstream in(folder_ + "/log");
    for (std::string line; std::getline(in, line);)
        lines.push_back(line);
    in.close();
    unlink((folder_ + "/log").c_str());
    return lines;
}

PluginOptions SampleTest::options(const std::string& failing) {
    PluginOptions options;
    options.directory = PLUGIN_DIR;
    options.policy["sample"].settings = {{"folder", folder_}};
    if (!failing.empty())
        options.policy["sample"].settings["fail"] = failing;
    options.image_dir_fd = image_.get();
    options.journal = journal_;
    return options;
}

Result<HeldForest> SampleTest::dump(Plugins* plugins, Steps& steps) {
    CheckpointRequest request;
    request.target = TreeTarget{pid_};
    request.image_dir_fd = image_.get();
    request.plugins = plugins;
    CheckpointStats stats;
    return checkpoint(request, steps, stats);
}

void SampleTest::dump_and_kill() {
    auto plugins = Plugins::for_checkpoint(options());
    ASSERT_TRUE(plugins) << plugins.error().text();
    auto held = dump(plugins->get());
    ASSERT_TRUE(held) << held.error().text();
    EXPECT_TRUE(file_exists(device(".parked"))) << "the device thread has run meanwhile";
    ASSERT_TRUE(held->kill());
    waitpid(pid_, nullptr, 0);
}

Result<BuiltForest> SampleTest::build(Plugins* plugins, Steps& steps) {
    RestoreRequest request(steps);
    request.image_dir_fd = image_.get();
    request.plugins = plugins;
    RestoreStats stats;
    return build_forest(request, stats);
}

void SampleTest::clear_image() {
    for (const auto& entry : std::filesystem::directory_iterator(tmp_.path() + "/image"))
        std::filesystem::remove(entry.path());
}

Result<void> FaultAt::enter(std::string_view step) {
    if (step != step_)
        return {};
    came_there_ = true;
    if (kills_)
        kill(getpid(), SIGKILL);
    return fail(ErrorKind::kSystem, std::string(step), "injected fault");
}

}  // namespace checkpointd
