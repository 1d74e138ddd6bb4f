// SPDX-License-Identifier: LGPL-2.1-or-later
#include <cerrno>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/transaction/undo_kinds.h"
#include "plugins/cuda/command_backend.h"
#include "plugins/cuda/kept_file.h"
#include "plugins/cuda/loose_threads.h"
#include "plugins/cuda/one_process_test_util.h"
#include "plugins/cuda/process.h"
#include "plugins/cuda/turn.h"
#include "plugins/cuda/undo.h"
#include "plugins/cuda/undo_record.h"

namespace checkpointd::cuda {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

TEST(CudaProcess, ADriverThatCannotBeAskedDoesNotSayThatItUsesNone) {
    OneProcess driver;
    for (int32_t none : {kInvalidValue, kNotInitialized}) {
        driver.known = none;
        auto found = Process::find(driver, 1, kDeadline);
        ASSERT_TRUE(found);
        EXPECT_FALSE(*found);
    }
    driver.known = kNotAsked;
    auto found = Process::find(driver, 1, kDeadline);
    ASSERT_FALSE(found);
    EXPECT_THAT(found.error().line(), HasSubstr("whether it uses CUDA: said"));
}

TEST(CudaProcess, WhatWasMappedIsNotRestoredWithoutItsContents) {
    OneProcess driver;
    driver.state = ProcessState::kCheckpointed;
    Process process = driver.process();
    process.expect_contents();
    auto back = process.bring_back(nullptr, {}, {}, kDeadline);
    ASSERT_FALSE(back);
    EXPECT_THAT(back.error().line(), HasSubstr("neither in a file"));
    EXPECT_EQ(driver.state, ProcessState::kCheckpointed);
    EXPECT_THAT(driver.asked, testing::Not(testing::Contains(Operation::kRestore)));
    ASSERT_TRUE(driver.process().bring_back(nullptr, {}, {}, kDeadline)) << "one that has its own";
    EXPECT_EQ(driver.state, ProcessState::kRunning);
}

TEST(CudaProcess, AMappingThatIsToldInPartIsNone) {
    OneProcess driver;
    const ckptd_host host = host_of(driver);
    ASSERT_TRUE(driver.process().map(host, kDeadline));
    driver.state = ProcessState::kLocked;
    driver.code = kNotSupported;
    EXPECT_FALSE(driver.process().map(host, kDeadline));
}

TEST(CudaProcess, ItsThreadRunsUntilItIsUnlocked) {
    for (auto state : {ProcessState::kLocked, ProcessState::kCheckpointed, ProcessState::kCheckpointing, ProcessState::kRestoring}) {
        OneProcess driver;
        driver.state = state;
        driver.held = state == ProcessState::kLocked || state == ProcessState::kCheckpointed ? 0 : kHeldMapped;
        const ckptd_host host = host_of(driver);
        ASSERT_TRUE(driver.process().bring_back(&host, {}, {}, kDeadline));
        EXPECT_TRUE(driver.without_thread.empty()) << static_cast<int>(state);
        EXPECT_FALSE(driver.thread_runs) << "and stands then";
    }
}

// The driver may have made a thread in it, or it may be in a call that nothing interrupts.
TEST(CudaProcess, IsUnlockedAlsoWhereItsThreadDoesNotStandAgain) {
    for (auto state : {ProcessState::kLocked, ProcessState::kCheckpointed, ProcessState::kCheckpointing, ProcessState::kRestoring}) {
        OneProcess driver;
        driver.state = state;
        driver.held = state == ProcessState::kLocked || state == ProcessState::kCheckpointed ? 0 : kHeldMapped;
        ckptd_host host = host_of(driver);
        host.hold_thread = [](void*, pid_t, pid_t, uint64_t) {
            errno = ETIMEDOUT;
            return -1;
        };
        EXPECT_FALSE(driver.process().bring_back(&host, {}, {}, kDeadline)) << "the journal is told";
        EXPECT_EQ(driver.state, ProcessState::kRunning) << static_cast<int>(state);
        EXPECT_TRUE(driver.without_thread.empty());
    }
}

// What waits here for the driver waits for one of them.
TEST(CudaThreads, AreTendedWhileOneWaits) {
    int ends[2];
    ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
    const ScopedFd answer(ends[0]), driver(ends[1]);
    struct Context {
        int times, fd;
    } context{0, driver.get()};
    ckptd_host host{};
    host.context = &context;
    host.run_thread = [](void* own, pid_t, pid_t) {
        auto& [times, fd] = *static_cast<Context*>(own);
        return ++times < 4 || write(fd, "", 1) == 1 ? 0 : -1;
    };
    host.hold_thread = [](void*, pid_t, pid_t, uint64_t) { return 0; };
    LooseThreads threads;
    ASSERT_TRUE(threads.run(host, 1, 2));
    EXPECT_TRUE(wait_readable(answer.get(), kDeadline, threads)) << "who has stopped does not answer";
    EXPECT_GE(context.times, 4);
    const int before = context.times;
    ASSERT_TRUE(threads.run(host, 1, 2));
    ASSERT_TRUE(threads.hold(1, kDeadline));
    EXPECT_TRUE(wait_readable(answer.get(), kDeadline, threads));
    EXPECT_EQ(context.times, before) << "it stands";
    host.run_thread = [](void*, pid_t, pid_t) {
        errno = EBUSY;
        return -1;
    };
    ASSERT_TRUE(threads.run(host, 1, 2));
    EXPECT_TRUE(threads.empty()) << "tasks that are not held run anyhow";
}

TEST(CudaProcess, ACopyHasTheTimeThatThereIs) {
    OneProcess driver;
    driver.state = ProcessState::kCheckpointing;
    driver.held = kHeldMapped;
    ASSERT_TRUE(driver.process().bring_back(nullptr, {}, {}, kDeadline));
    EXPECT_EQ(driver.copy_deadline, kDeadline);
}

// 0 would be for ever.
TEST(CudaProcess, ALockHasNoMoreTimeThanThereIs) {
    using namespace std::chrono_literals;
    OneProcess driver;
    ASSERT_TRUE(driver.process().lock(10s, kDeadline));
    EXPECT_EQ(driver.lock_ms, 10000u);
    const auto soon = std::chrono::steady_clock::now() + 3s;
    ASSERT_TRUE(driver.process().lock(10s, soon));
    EXPECT_LE(driver.lock_ms, 3000u);
    EXPECT_GE(driver.lock_ms, 1u);
    EXPECT_LT(driver.lock_deadline, soon + 5s) << "by then its worker is ended";
    for (auto timeout : {0s, 10s}) {
        const auto past = std::chrono::steady_clock::now() - 1s;
        ASSERT_TRUE(driver.process().lock(timeout, past));
        EXPECT_EQ(driver.lock_ms, 1u);
    }
}

class CudaFolder : public testing::Test {
  protected:
    void SetUp() override { ASSERT_NE(mkdtemp(folder_.data()), nullptr); }
    void TearDown() override { fs::remove_all(folder_); }
    std::string script(const std::string& what) const {
        const std::string path = folder_ + "/command";
        std::ofstream(path) << "#!/bin/sh\n" << what << "\n";
        fs::permissions(path, fs::perms::owner_all);
        return path;
    }
    std::string folder_ = "/tmp/cuda-test-XXXXXX";
};

TEST_F(CudaFolder, OnlyWhatItSaysOfTheProcessCounts) {
    const auto find = [&](const char* what) {
        CommandBackend command(script(what), folder_);
        return Process::find(command, getpid(), kDeadline);
    };
    auto none = find("echo 'Could not get restore tid of process ID 1: \"initialization error\"' >&2; exit 1");
    ASSERT_TRUE(none) << none.error().text();
    EXPECT_FALSE(*none);
    EXPECT_FALSE(find("echo 'Error initializing CUDA: \"initialization error\"' >&2; exit 1"));
    EXPECT_FALSE(find("echo 'system not yet initialized' >&2; exit 1"));
    EXPECT_FALSE(find("kill -SEGV $$"));
}

TEST_F(CudaFolder, AProcessThatLivesAndIsNotKnownAnyMoreIsNotUndone) {
    std::error_code ignored;
    const bool is_new = fs::create_directory(kTurnFolder, ignored);
    if (access(kTurnFolder, W_OK) != 0)
        GTEST_SKIP() << "needs root";
    const std::string none = script("echo 'invalid argument'; exit 1");
    const UndoRecord record{getpid(), *process_start_time(getpid()), UndoRecord::kByCommand, 0, {}, none};
    EXPECT_TRUE(undo_recorded(record.text(), kDeadline)) << "it has no CUDA in it";
    const std::string library = folder_ + "/libcuda.so.1";
    ScopedFd file(open(library.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0700));
    ASSERT_EQ(ftruncate(file.get(), 4096), 0);
    void* mapped = mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE, file.get(), 0);
    ASSERT_NE(mapped, MAP_FAILED);
    const auto undone = undo_recorded(record.text(), kDeadline);
    ASSERT_FALSE(undone);
    EXPECT_THAT(undone.error().line(), HasSubstr("knows nothing of it any more"));
    munmap(mapped, 4096);
    if (is_new)
        fs::remove(kTurnFolder, ignored);
}

TEST_F(CudaFolder, AFileIsKeptBesideItsImage) {
    const fs::path image = folder_ + "/image", stale = folder_ + "/.gpu-memory-1-1", other = folder_ + "/.gpu-memory-x";
    fs::create_directory(image);
    for (const fs::path& path : {image / "gpu-cs-1.img", stale, other})
        std::ofstream(path) << "numbers";
    ScopedFd file(open((image / "gpu-cs-1.img").c_str(), O_RDWR | O_CLOEXEC));
    auto kept = keep_file(file.get(), getpid(), *process_start_time(getpid()));
    ASSERT_TRUE(kept) << kept.error().text();
    fs::remove_all(image);
    EXPECT_EQ(fs::file_size(*kept), 7u);
    EXPECT_FALSE(fs::exists(stale)) << "of a process that has ended";
    drop_kept(*kept);
    EXPECT_FALSE(fs::exists(*kept));
    drop_kept(other);
    EXPECT_TRUE(fs::exists(other));
}

}  // namespace
}  // namespace checkpointd::cuda
