// SPDX-License-Identifier: LGPL-2.1-or-later
#include <algorithm>
#include <csignal>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <string>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "core/kernel/cgroup.h"
#include "core/kernel/pidfd.h"
#include "core/kernel/room.h"
#include "core/kernel/same_cpu.h"
#include "core/kernel/sleeper_test_util.h"

namespace checkpointd {
namespace {

using testing::Sleeper;

TEST(Cgroup, MountPointOfBothLayouts) {
    EXPECT_EQ(*parse_cgroup2_mount_point(
                  "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
                  "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"),
              "/sys/fs/cgroup");
    EXPECT_EQ(*parse_cgroup2_mount_point(
                  "30 29 0:27 / /sys/fs/cgroup/cpu rw shared:10 - cgroup cgroup rw,cpu\n"
                  "31 29 0:28 / /sys/fs/cgroup/unified rw shared:11 - cgroup2 cgroup2 rw\n"),
              "/sys/fs/cgroup/unified");
}

TEST(Cgroup, BindMountOfASubtreeIsNotTheTree) {
    auto result = parse_cgroup2_mount_point(
        "31 29 0:28 /docker/1 /mnt rw shared:11 - cgroup2 cgroup2 rw\n");
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().kind, ErrorKind::kNotFound);
    EXPECT_FALSE(parse_cgroup2_mount_point("29 24 0:25 / / rw - ext4 /dev/sda rw\n"));
}

// Files of the same names and contents as the kernel's.
TEST(Room, IsWhatTheNarrowestGroupLeaves) {
    char top[] = "/tmp/doors_test.XXXXXX";
    ASSERT_NE(mkdtemp(top), nullptr);
    std::string slice = std::string(top) + "/x.slice", unit = slice + "/y.service";
    std::filesystem::create_directories(unit);
    auto put = [](const std::string& file, const std::string& text) { std::ofstream(file) << text; };
    EXPECT_EQ(cgroup_room(unit, top), Room{});
    put(unit + "/memory.max", "max\n");
    put(unit + "/pids.max", "10\n");
    put(unit + "/pids.current", "7\n");
    put(slice + "/memory.max", "1000\n");
    put(slice + "/memory.high", "900\n");
    put(slice + "/memory.current", "800\n");
    EXPECT_EQ(cgroup_room(unit, top), (Room{100, 3}));
    put(slice + "/memory.stat", "anon 200\nfile 600\nkernel 0\nshmem 50\n");
    EXPECT_EQ(cgroup_room(unit, top), (Room{650, 3})) << "the page cache can be dropped, but for shmem";
    put(slice + "/memory.current", "2000\n");
    EXPECT_EQ(cgroup_room(unit, top), (Room{0, 3}));
    std::filesystem::remove_all(top);
}

TEST(Room, AvailableMemory) {
    EXPECT_EQ(*parse_available_memory("MemTotal:  9 kB\nMemAvailable:     4 kB\n"), 4096u);
    EXPECT_FALSE(parse_available_memory("MemTotal:  9 kB\n"));
    EXPECT_GT(*available_memory(), 1u << 20);
}

TEST(Cgroup, FreezesThawsAndListsWhatIsBelow) {
    Result<std::string> top = cgroup2_mount_point();
    std::string path = top.value_or("/nonexistent") + "/checkpointd-doors-" + std::to_string(getpid());
    if (mkdir(path.c_str(), 0755) != 0 || mkdir((path + "/sub").c_str(), 0755) != 0)
        GTEST_SKIP() << "no cgroup2 tree to write to";
    {
        Sleeper first, second;
        std::ofstream(path + "/cgroup.procs") << first.pid();
        std::ofstream(path + "/sub/cgroup.procs") << second.pid();
        std::vector<pid_t> expected{first.pid(), second.pid()};
        std::sort(expected.begin(), expected.end());
        EXPECT_EQ(*cgroup_processes(path), expected);
        EXPECT_EQ(*cgroup_threads(path), expected);
        EXPECT_EQ(*cgroup2_of(second.pid()), path + "/sub");
        auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
        auto frozen = [&] {
            std::ifstream file(path + "/sub/cgroup.events");
            return std::string(std::istreambuf_iterator<char>(file), {}).find("frozen 1") !=
                   std::string::npos;
        };
        {
            Result<CgroupFreeze> freeze = CgroupFreeze::freeze(path, deadline);
            ASSERT_TRUE(freeze) << freeze.error().text();
            EXPECT_FALSE(freeze->was_frozen_before());
            EXPECT_TRUE(frozen());
            Result<CgroupFreeze> again = CgroupFreeze::freeze(path, deadline);
            ASSERT_TRUE(again);
            EXPECT_TRUE(again->was_frozen_before());
            ASSERT_TRUE(again->thaw());  // not its own to thaw
            EXPECT_TRUE(frozen());
            Result<CgroupFreeze> below = CgroupFreeze::freeze(path + "/sub", deadline);
            ASSERT_FALSE(below);  // its thaw would not make anything run
            EXPECT_NE(below.error().text().find(path), std::string::npos);
        }
        EXPECT_FALSE(frozen());
    }
    for (const std::string& name : {path + "/sub", path})
        for (int i = 0; i < 60'000 && rmdir(name.c_str()) != 0 && errno == EBUSY; ++i)
            usleep(1000);
    EXPECT_NE(access(path.c_str(), F_OK), 0);
    EXPECT_TRUE(thaw_cgroup(path));  // one that is gone is fine
}

TEST(SameCpu, BindsUntilItsEnd) {
    cpu_set_t before, inside, after;
    ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
    {
        const SameCpu beside(getppid());
        ASSERT_EQ(sched_getaffinity(0, sizeof(inside), &inside), 0);
    }
    ASSERT_EQ(sched_getaffinity(0, sizeof(after), &after), 0);
    EXPECT_EQ(CPU_COUNT(&inside), 1);
    EXPECT_TRUE(CPU_EQUAL(&before, &after));
    {
        const SameCpu nobody(0);
        ASSERT_EQ(sched_getaffinity(0, sizeof(inside), &inside), 0);
    }
    EXPECT_TRUE(CPU_EQUAL(&before, &inside));
}

TEST(Pidfd, DuplicateSharesTheOpenFile) {
    int pipes[2];
    ASSERT_EQ(pipe2(pipes, O_CLOEXEC), 0);
    Sleeper child;
    Result<ScopedFd> pidfd = pidfd_open(child.pid());
    ASSERT_TRUE(pidfd);
    Result<ScopedFd> copy = pidfd_get_fd(pidfd->get(), pipes[1]);
    ASSERT_TRUE(copy) << copy.error().text();
    ASSERT_EQ(write(copy->get(), "x", 1), 1);
    char byte = 0;
    EXPECT_EQ(read(pipes[0], &byte, 1), 1);
    EXPECT_EQ(byte, 'x');
    EXPECT_EQ(pidfd_get_fd(pidfd->get(), 9999).error().errno_code, EBADF);
    ASSERT_TRUE(pidfd_send_signal(pidfd->get(), SIGKILL));
    close(pipes[0]);
    close(pipes[1]);
}

TEST(Pidfd, NoSuchProcessIsGone) {
    EXPECT_EQ(pidfd_open(0x3fffff).error().kind, ErrorKind::kGone);
}

}  // namespace
}  // namespace checkpointd
