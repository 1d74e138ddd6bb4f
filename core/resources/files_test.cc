// SPDX-License-Identifier: LGPL-2.1-or-later
#include <ctime>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <fmt/core.h>

#include "core/base/io.h"
#include "core/resources/files_test_world.h"

namespace checkpointd {
namespace {

using testing::restore;
using testing::TempDir;
using testing::World;
using ::testing::HasSubstr;

std::string content(int fd, size_t limit = 4096) {
    std::string text(limit, '\0');
    ssize_t got = read(fd, text.data(), text.size());
    text.resize(got > 0 ? static_cast<size_t>(got) : 0);
    return text;
}

bool put(int fd, const std::string& text) {
    return write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

// Opens at a number, so that checks after the restore know it.
void at(int number, int fd) {
    dup2(fd, number);
    close(fd);
}

std::string all_text(const std::vector<Error>& errors) {
    std::string text;
    for (const Error& error : errors)
        text += error.line() + "\n";
    return text;
}

uint32_t id_at(const FileCollector& collector, uint32_t table, uint32_t fd) {
    for (const auto& entry : collector.images().tables.at(table))
        if (entry.fd() == fd)
            return entry.id();
    return 0;
}

TEST(Files, PositionsFlagsAndSharedDescriptions) {
    TempDir dir;
    ASSERT_TRUE(write_file(AT_FDCWD, dir / "data", "0123456789"));
    World world;
    world.start([&] {
        at(10, open((dir / "data").c_str(), O_RDWR));
        lseek(10, 4, SEEK_SET);
        fcntl(10, F_DUPFD_CLOEXEC, 11);
        at(12, open((dir / "data").c_str(), O_RDONLY | O_NONBLOCK));
        lseek(12, 4, SEEK_SET);
        at(13, open((dir / "log").c_str(), O_WRONLY | O_APPEND | O_CREAT, 0600));
        put(13, "one");
        at(14, open(dir.path().c_str(), O_RDONLY | O_DIRECTORY));
        at(15, open((dir / "data").c_str(), O_PATH));
        if (chdir(dir.path().c_str()) == 0)
            umask(027);
    });
    FileCollector collector({});
    ASSERT_TRUE(world.collect(collector));
    EXPECT_EQ(all_text(collector.blockers()), "");
    EXPECT_EQ(id_at(collector, 1, 10), id_at(collector, 1, 11));
    EXPECT_NE(id_at(collector, 1, 10), id_at(collector, 1, 12));
    ScopedFd log(open((dir / "log").c_str(), O_WRONLY | O_APPEND));
    ASSERT_TRUE(put(log.get(), "+grown"));

    EXPECT_EQ(restore(world, collector, {[&]() -> std::string {
        CHECK_THAT(lseek(10, 0, SEEK_CUR) == 4);
        CHECK_THAT(lseek(11, 2, SEEK_CUR) == 6 && lseek(10, 0, SEEK_CUR) == 6);
        CHECK_THAT(lseek(12, 0, SEEK_CUR) == 4);
        CHECK_THAT((fcntl(11, F_GETFD) & FD_CLOEXEC) && !(fcntl(10, F_GETFD) & FD_CLOEXEC));
        CHECK_THAT((fcntl(10, F_GETFL) & O_ACCMODE) == O_RDWR && fcntl(12, F_GETFL) & O_NONBLOCK);
        CHECK_THAT(put(13, "two"));
        CHECK_THAT(*read_file(AT_FDCWD, "log") == "one+growntwo");
        CHECK_THAT((fcntl(15, F_GETFL) & O_PATH) != 0);
        CHECK_THAT(umask(0) == 027);
        CHECK_THAT(fcntl(16, F_GETFD) < 0);
        return "";
    }}), "");
}

TEST(Files, AFileThatChangedIsRefused) {
    TempDir dir;
    ASSERT_TRUE(write_file(AT_FDCWD, dir / "data", "0123456789"));
    World world;
    world.start([&] { at(10, open((dir / "data").c_str(), O_RDONLY)); });
    FileCollector collector({});
    ASSERT_TRUE(world.collect(collector));
    ASSERT_TRUE(write_file(AT_FDCWD, dir / "data", "0123456789+"));
    EXPECT_THAT(restore(world, collector, {}), HasSubstr("size as it was (10 bytes)"));
}

TEST(Files, DeletedFilesTravel) {
    TempDir dir;
    World world;
    world.start([&] {
        at(10, open((dir / "gone").c_str(), O_RDWR | O_CREAT, 0640));
        at(11, open((dir / "gone").c_str(), O_RDONLY));
        put(10, "head");
        lseek(10, 1 << 20, SEEK_SET);
        put(10, "tail");
        unlink((dir / "gone").c_str());
        at(12, open(dir.path().c_str(), O_TMPFILE | O_RDWR, 0600));
        put(12, "nameless");
        mkdir((dir / "sub").c_str(), 0700);
        at(13, open((dir / "sub").c_str(), O_RDONLY | O_DIRECTORY));
        rmdir((dir / "sub").c_str());
    });
    FileCollector collector({});
    ASSERT_TRUE(world.collect(collector));
    EXPECT_EQ(all_text(collector.blockers()), "");
    EXPECT_EQ(restore(world, collector, {[&]() -> std::string {
        struct stat one, two;
        CHECK_THAT(fstat(10, &one) == 0 && fstat(11, &two) == 0 && one.st_ino == two.st_ino);
        CHECK_THAT(one.st_nlink == 0 && one.st_size == (1 << 20) + 4 && (one.st_mode & 07777) == 0640);
        CHECK_THAT(one.st_blocks * 512 < 1 << 19);
        CHECK_THAT(content(11, 4) == "head");
        CHECK_THAT(lseek(10, 0, SEEK_CUR) == (1 << 20) + 4);
        CHECK_THAT(lseek(10, -4, SEEK_CUR) > 0 && content(10) == "tail");
        CHECK_THAT(lseek(12, 0, SEEK_SET) == 0 && content(12) == "nameless");
        CHECK_THAT(fstat(13, &one) == 0 && S_ISDIR(one.st_mode) && one.st_nlink == 0);
        return "";
    }}), "");
    EXPECT_EQ(access((dir / "gone").c_str(), F_OK), -1);
}

TEST(Files, ADeletedFileBeyondTheLimitIsABlocker) {
    TempDir dir;
    World world;
    world.start([&] {
        at(10, open(dir.path().c_str(), O_TMPFILE | O_RDWR, 0600));
        put(10, "too much");
    });
    CollectOptions options;
    options.ghost_limit = 4;
    FileCollector collector(options);
    ASSERT_TRUE(world.collect(collector));
    EXPECT_THAT(all_text(collector.blockers()), HasSubstr("more than the limit of 4"));
}

TEST(Files, PipesKeepContentPacketsAndSize) {
    World world;
    world.start([&] {
        int ends[2];
        ASSERT_EQ(pipe2(ends, O_NONBLOCK), 0);
        at(10, ends[0]);
        at(11, ends[1]);
        put(11, "plain");
        ASSERT_EQ(pipe2(ends, O_DIRECT), 0);
        at(12, ends[0]);
        at(13, ends[1]);
        fcntl(13, F_SETPIPE_SZ, 1 << 18);
        put(13, "first");
        put(13, "second");
        ASSERT_EQ(pipe(ends), 0);
        at(14, ends[0]);
        at(15, ends[1]);
        close(14);  // a writer without reader
    });
    FileCollector collector({});
    ASSERT_TRUE(world.collect(collector));
    EXPECT_EQ(all_text(collector.blockers()), "");
    // Nothing was consumed: a second look sees the same.
    FileCollector again({});
    ASSERT_TRUE(world.collect(again));
    EXPECT_EQ(again.images().pipes.begin()->second.bytes, "plain");
    EXPECT_EQ(restore(world, collector, {[&]() -> std::string {
        CHECK_THAT(content(10) == "plain");
        CHECK_THAT((fcntl(10, F_GETFL) & O_NONBLOCK) && content(10) == "" && errno == EAGAIN);
        CHECK_THAT(put(11, "more") && content(10) == "more");
        CHECK_THAT(content(12) == "first" && content(12) == "second");
        CHECK_THAT(fcntl(12, F_GETPIPE_SZ) == 1 << 18 && fcntl(13, F_GETFL) & O_DIRECT);
        signal(SIGPIPE, SIG_IGN);
        CHECK_THAT(!put(15, "x") && errno == EPIPE);
        close(11);
        CHECK_THAT(read(10, &world, 1) == 0);
        return "";
    }}), "");
}

TEST(Files, APipeToTheOutsideIsABlockerUnlessExternal) {
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    ScopedFd ours(ends[0]), theirs(ends[1]);
    struct stat st;
    fstat(ends[0], &st);
    World world;
    // start() closes everything, so the pipe is opened anew through /proc of its maker.
    const std::string path = fmt::format("/proc/{}/fd/{}", getpid(), ends[1]);
    world.start([&] { at(10, open(path.c_str(), O_WRONLY)); });
    FileCollector collector({});
    ASSERT_TRUE(world.collect(collector));
    EXPECT_THAT(all_text(collector.blockers()), HasSubstr("the other end of this pipe"));
    CollectOptions options;
    options.externals = {fmt::format("pipe:[{}]", st.st_ino)};
    FileCollector tolerant(options);
    ASSERT_TRUE(world.collect(tolerant));
    EXPECT_EQ(all_text(tolerant.blockers()), "");
}

TEST(Files, FifosKeepTheirContent) {
    TempDir dir;
    ASSERT_EQ(mkfifo((dir / "fifo").c_str(), 0600), 0);
    World world;
    world.start([&] {
        at(10, open((dir / "fifo").c_str(), O_RDWR));
        at(11, open((dir / "fifo").c_str(), O_RDONLY | O_NONBLOCK));
        put(10, "waiting");
    });
    FileCollector collector({});
    ASSERT_TRUE(world.collect(collector));
    EXPECT_EQ(all_text(collector.blockers()), "");
    world.kill_first();
    EXPECT_EQ(restore(world, collector, {[&]() -> std::string {
        CHECK_THAT(content(11) == "waiting");
        CHECK_THAT(put(10, "more") && content(11) == "more");
        return "";
    }}), "");
}

TEST(Files, EventTimerAndSignalDescriptors) {
    World world;
    world.start([&] {
        at(10, eventfd(7, 0));
        at(11, eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK));
        at(12, timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
        itimerspec soon{{0, 0}, {0, 300'000'000}};
        timerfd_settime(12, 0, &soon, nullptr);
        at(13, timerfd_create(CLOCK_MONOTONIC, 0));
        itimerspec past{{100, 0}, {0, 1}};
        timerfd_settime(13, 0, &past, nullptr);
        at(14, timerfd_create(CLOCK_REALTIME, 0));
        itimerspec wall{{0, 0}, {time(nullptr) + 1000, 0}};
        timerfd_settime(14, TFD_TIMER_ABSTIME, &wall, nullptr);
        sigset_t mask;
        sigemptyset(&mask);
        sigaddset(&mask, SIGUSR2);
        at(15, signalfd(-1, &mask, SFD_NONBLOCK));
    });
    FileCollector collector({});
    ASSERT_TRUE(world.collect(collector));
    EXPECT_EQ(all_text(collector.blockers()), "");
    FilePlanOptions options;
    clock_gettime(CLOCK_REALTIME, &options.clocks.realtime);
    EXPECT_EQ(restore(world, collector, {[&]() -> std::string {
        uint64_t count = 0;
        CHECK_THAT(read(10, &count, 8) == 8 && count == 7);
        CHECK_THAT(read(11, &count, 8) == 8 && count == 1);
        CHECK_THAT(read(11, &count, 8) == 8 && count == 1);
        CHECK_THAT(read(12, &count, 8) < 0 && errno == EAGAIN);
        pollfd timer{12, POLLIN, 0};
        CHECK_THAT(poll(&timer, 1, 60'000) == 1 && read(12, &count, 8) == 8 && count == 1);
        CHECK_THAT(read(13, &count, 8) == 8 && count == 1);
        itimerspec left{};
        CHECK_THAT(timerfd_gettime(13, &left) == 0 && left.it_interval.tv_sec == 100);
        CHECK_THAT(left.it_value.tv_sec > 90);
        CHECK_THAT(timerfd_gettime(14, &left) == 0 && left.it_value.tv_sec > 990);
        CHECK_THAT(left.it_value.tv_sec <= 1000);
        signalfd_siginfo info{};
        sigset_t mask;
        sigfillset(&mask);
        sigprocmask(SIG_SETMASK, &mask, nullptr);
        kill(getpid(), SIGUSR1);
        CHECK_THAT(read(15, &info, sizeof(info)) < 0 && errno == EAGAIN);
        kill(getpid(), SIGUSR2);
        CHECK_THAT(read(15, &info, sizeof(info)) > 0 && info.ssi_signo == SIGUSR2);
        return "";
    }}, options), "");
}

TEST(Files, EpollSetsFireAgain) {
    World world;
    world.start([&] {
        at(10, epoll_create1(EPOLL_CLOEXEC));
        at(11, eventfd(0, 0));
        epoll_event event{EPOLLIN, {.u64 = 0x1234567890}};
        epoll_ctl(10, EPOLL_CTL_ADD, 11, &event);
        at(12, eventfd(1, 0));
        event = {EPOLLIN | EPOLLONESHOT, {.u64 = 12}};
        epoll_ctl(10, EPOLL_CTL_ADD, 12, &event);
        epoll_wait(10, &event, 1, 0);  // disarms it
        // Registered as 13; only the duplicate 14 is left, and 13 is another file.
        at(13, eventfd(0, 0));
        event = {EPOLLIN, {.u64 = 14}};
        epoll_ctl(10, EPOLL_CTL_ADD, 13, &event);
        dup2(13, 14);
        at(13, eventfd(1, 0));
    });
    FileCollector collector({});
    ASSERT_TRUE(world.collect(collector));
    EXPECT_EQ(all_text(collector.blockers()), "");
    EXPECT_EQ(restore(world, collector, {[&]() -> std::string {
        epoll_event event{};
        uint64_t one = 1;
        CHECK_THAT(epoll_wait(10, &event, 1, 0) == 0);
        CHECK_THAT(write(11, &one, 8) == 8);
        CHECK_THAT(epoll_wait(10, &event, 1, 0) == 1 && event.data.u64 == 0x1234567890);
        CHECK_THAT(read(11, &one, 8) == 8 && epoll_wait(10, &event, 1, 0) == 0);
        CHECK_THAT(write(14, &one, 8) == 8);
        CHECK_THAT(epoll_wait(10, &event, 1, 0) == 1 && event.data.u64 == 14);
        event = {EPOLLIN, {.u64 = 99}};
        CHECK_THAT(epoll_ctl(10, EPOLL_CTL_MOD, 12, &event) == 0);
        return "";
    }}), "");
}

TEST(Files, AnEpollTargetThatNobodyHasIsABlocker) {
    World world;
    world.start([&] {
        at(10, epoll_create1(0));
        at(11, eventfd(0, 0));
        epoll_event event{EPOLLIN, {}};
        epoll_ctl(10, EPOLL_CTL_ADD, 11, &event);
        // The mapping of an in-flight descriptor: kept alive by another process only.
        World* self = &world;
        self->fork_here([] { close(10); });
        close(11);
    });
    FileCollector collector({});
    ASSERT_TRUE(world.collect(collector));
    EXPECT_THAT(all_text(collector.blockers()), HasSubstr("watches a file that was fd 11"));
}

TEST(Files, MemfdsKeepContentAndSeals) {
    World world;
    world.start([&] {
        at(10, memfd_create("scratch", MFD_ALLOW_SEALING));
        put(10, "secret");
        fcntl(10, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
        at(11, open("/proc/self/fd/10", O_RDONLY));
    });
    FileCollector collector({});
    ASSERT_TRUE(world.collect(collector));
    EXPECT_EQ(all_text(collector.blockers()), "");
    ASSERT_EQ(collector.wanted_memory().size(), 1u);
    EXPECT_EQ(collector.wanted_memory()[0].size, 6u);
    FilePlanOptions options;
    options.fill_memory = [](uint32_t, uint64_t size, Slot fd, Program& agent) -> Result<void> {
        agent.call_expect("fill", 6, SYS_pwrite64, {fd, agent.plan().bytes("secret", 6), size, 0});
        return {};
    };
    EXPECT_EQ(restore(world, collector, {[&]() -> std::string {
        CHECK_THAT(lseek(10, 0, SEEK_CUR) == 6 && content(11) == "secret");
        CHECK_THAT(fcntl(10, F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE));
        CHECK_THAT(pwrite(10, "x", 1, 0) < 0 && errno == EPERM);
        CHECK_THAT((fcntl(11, F_GETFL) & O_ACCMODE) == O_RDONLY);
        CHECK_THAT(read_link(AT_FDCWD, "/proc/self/fd/10")->starts_with("/memfd:scratch"));
        return "";
    }}, options), "");
}

TEST(Files, InotifyWatchesKeepTheirNumbers) {
    TempDir dir;
    World world;
    world.start([&] {
        at(10, inotify_init1(IN_NONBLOCK));
        inotify_add_watch(10, "/tmp", IN_MOVE_SELF);
        inotify_rm_watch(10, 1);
        content(10);  // IN_IGNORED
        inotify_add_watch(10, dir.path().c_str(), IN_CREATE);
    });
    FileCollector collector({});
    ASSERT_TRUE(world.collect(collector));
    EXPECT_EQ(all_text(collector.blockers()), "");
    EXPECT_EQ(restore(world, collector, {[&]() -> std::string {
        CHECK_THAT(content(10) == "" && errno == EAGAIN);
        close(open((dir / "new").c_str(), O_CREAT | O_WRONLY, 0600));
        std::string events = content(10);
        CHECK_THAT(events.size() >= sizeof(inotify_event));
        auto* event = reinterpret_cast<const inotify_event*>(events.data());
        CHECK_THAT(event->wd == 2 && event->mask == IN_CREATE && std::string(event->name) == "new");
        return "";
    }}), "");
}

TEST(Files, PidfdsAndFilesOfProcAreOpenedWhenTheTasksAre) {
    World world;
    world.start([&] {
        world.fork_here([] {});
        at(10, static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0)));
        dup2(10, 12);
        at(11, open("/proc/self/status", O_RDONLY));
    });
    FileCollector collector({});
    ASSERT_TRUE(world.collect(collector));
    EXPECT_EQ(all_text(collector.blockers()), "");
    pid_t target = world.pids()[0];
    EXPECT_EQ(restore(world, collector, {[&]() -> std::string {
        auto info = read_file(AT_FDCWD, "/proc/self/fdinfo/10");
        CHECK_THAT(info && info->find(fmt::format("Pid:\t{}\n", target)) != std::string::npos);
        CHECK_THAT(fcntl(12, F_GETFD) == 0 && (fcntl(10, F_GETFD) & FD_CLOEXEC) == 0);
        CHECK_THAT(content(11).find(fmt::format("Pid:\t{}\n", target)) != std::string::npos);
        return "";
    }}), "");
}

TEST(Files, LocksAreTakenAgain) {
    TempDir dir;
    ASSERT_TRUE(write_file(AT_FDCWD, dir / "a", "0123456789"));
    World world;
    world.start([&] {
        at(10, open((dir / "a").c_str(), O_RDWR));
        flock(10, LOCK_EX);
        at(11, open((dir / "a").c_str(), O_RDWR));
        struct flock range {};
        range.l_type = F_WRLCK;
        range.l_start = 2;
        range.l_len = 3;
        fcntl(11, F_SETLK, &range);
    });
    FileCollector collector({});
    ASSERT_TRUE(world.collect(collector));
    EXPECT_EQ(all_text(collector.blockers()), "");
    EXPECT_EQ(collector.images().locks.size(), 2u);
    world.kill_first();
    EXPECT_EQ(restore(world, collector, {[&]() -> std::string {
        int other = open((dir / "a").c_str(), O_RDWR);
        CHECK_THAT(flock(other, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK);
        struct flock range {};
        range.l_type = F_WRLCK;
        CHECK_THAT(fcntl(other, F_OFD_GETLK, &range) == 0 && range.l_type == F_WRLCK);
        CHECK_THAT(range.l_start == 2 && range.l_len == 3 && range.l_pid == getpid());
        return "";
    }}), "");
}

TEST(Files, ProcessesShareWhatTheyShared) {
    TempDir dir;
    ASSERT_TRUE(write_file(AT_FDCWD, dir / "data", "0123456789"));
    World world;
    world.start([&] {
        at(10, open((dir / "data").c_str(), O_RDONLY));
        int ends[2];
        ASSERT_EQ(pipe(ends), 0);
        at(11, ends[0]);
        at(12, ends[1]);
        world.fork_here([] {
            close(11);
            dup2(10, 20);
            close(10);
        });
        close(12);
    });
    FileCollector collector({});
    ASSERT_TRUE(world.collect(collector));
    EXPECT_EQ(all_text(collector.blockers()), "");
    EXPECT_EQ(id_at(collector, 1, 10), id_at(collector, 2, 20));
    EXPECT_EQ(restore(world, collector, {
        [&]() -> std::string {
            CHECK_THAT(lseek(10, 6, SEEK_SET) == 6);
            return "";
        },
        [&]() -> std::string {
            CHECK_THAT(lseek(20, 0, SEEK_CUR) == 6 && put(12, "hello"));
            CHECK_THAT(fcntl(11, F_GETFD) < 0 && fcntl(10, F_GETFD) < 0);
            return "";
        }}), "");
}

TEST(Files, WhatCannotBeCarriedIsSaidAtOnce) {
    TempDir dir;
    World world;
    world.start([&] {
        at(10, static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | 1)));
        at(11, open("/dev/kmsg", O_RDONLY));
        at(12, open("/proc/self/ns/net", O_RDONLY));
        at(13, open((dir / "linked").c_str(), O_RDWR | O_CREAT, 0600));
        ASSERT_EQ(link((dir / "linked").c_str(), (dir / "other").c_str()), 0);
        unlink((dir / "linked").c_str());
    });
    FileCollector collector({});
    ASSERT_TRUE(world.collect(collector));
    std::string text = all_text(collector.blockers());
    EXPECT_THAT(text, HasSubstr("userfaultfd"));
    EXPECT_THAT(text, HasSubstr("device 1:11"));
    EXPECT_THAT(text, HasSubstr("namespace held open"));
    EXPECT_THAT(text, HasSubstr("another one that cannot be found"));
    EXPECT_EQ(collector.blockers().size(), 4u);
}

TEST(Files, PathsAreThoseOfTheTasksMountNamespace) {
    TempDir dir;
    mkdir((dir / "mnt").c_str(), 0700);
    ASSERT_TRUE(write_file(AT_FDCWD, dir / "mnt/hidden", "below"));
    World world;
    world.start([&] {
        ASSERT_EQ(unshare(CLONE_NEWNS), 0);
        ASSERT_EQ(mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
        at(11, open((dir / "mnt/hidden").c_str(), O_RDONLY));
        ASSERT_EQ(mount("t", (dir / "mnt").c_str(), "tmpfs", 0, nullptr), 0);
        at(10, open((dir / "mnt/private").c_str(), O_RDWR | O_CREAT, 0600));
    });
    FileCollector collector({});
    ASSERT_TRUE(world.collect(collector));
    std::string text = all_text(collector.blockers());
    EXPECT_EQ(collector.blockers().size(), 1u) << text;
    EXPECT_THAT(text, HasSubstr("fd 11"));
    EXPECT_THAT(text, HasSubstr("this path leads to another file"));
    for (const auto& entry : collector.images().files)
        if (entry.id() == id_at(collector, 1, 10)) {
            EXPECT_EQ(entry.reg().name(), dir / "mnt/private");
        }
}

TEST(Files, MappingsOfFilesHaveOneRecordEach) {
    TempDir dir;
    ASSERT_TRUE(write_file(AT_FDCWD, dir / "data", std::string(8192, 'x')));
    World world;
    auto* at_address = reinterpret_cast<char*>(0x7000000000);
    world.start([&] {
        int fd = open((dir / "data").c_str(), O_RDWR);
        (void)mmap(at_address, 4096, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0);
        (void)mmap(at_address + 4096, 4096, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0);
        close(fd);
    });
    struct stat st;
    stat((dir / "data").c_str(), &st);
    FileCollector collector({});
    ASSERT_TRUE(world.collect(collector));
    auto start = reinterpret_cast<uint64_t>(at_address);
    MappedFile mapping{world.pids()[0], start, start + 4096, st.st_dev, st.st_ino, dir / "data", false};
    // Two neighbours of different offsets that the kernel joined are one range.
    mapping.end = start + 8192;
    auto first = collector.id_of_mapping(mapping);
    if (!first) {
        mapping.end = start + 4096;
        first = collector.id_of_mapping(mapping);
    }
    ASSERT_TRUE(first) << first.error().text();
    EXPECT_EQ(*collector.id_of_mapping(mapping), *first);
    auto exe = collector.id_of_exe(world.pids()[0]);
    ASSERT_TRUE(exe);
    EXPECT_NE(*exe, *first);
    mapping.writable_shared = true;
    EXPECT_NE(*collector.id_of_mapping(mapping), *first);
}

TEST(Files, ThousandsOfFilesAreQuick) {
    TempDir dir;
    World world;
    world.start([&] {
        for (int i = 0; i < 4000; ++i)
            open((dir / std::to_string(i)).c_str(), O_RDWR | O_CREAT, 0600);
    });
    FileCollector collector({});
    std::clock_t begin = std::clock();
    ASSERT_TRUE(world.collect(collector));
    double seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
    size_t tables = collector.images().tables.at(1).size();
    RecordProperty("microseconds", static_cast<int>(seconds * 1e6));
    EXPECT_GE(tables, 900u);  // as many as RLIMIT_NOFILE allowed
    EXPECT_EQ(all_text(collector.blockers()), "");
    EXPECT_LT(seconds, 2.0);  // on the processor, whatever else the machine does
}

}  // namespace
}  // namespace checkpointd
