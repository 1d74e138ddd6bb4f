// SPDX-License-Identifier: LGPL-2.1-or-later
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <algorithm>
#include <ctime>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <map>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

#include "core/kernel/proc_maps.h"
#include "core/kernel/proc_stat.h"
#include "core/kernel/proc_status.h"
#include "core/kernel/proc_task.h"
#include "core/kernel/proc_text.h"

namespace checkpointd {
namespace {

using testing::Contains;
using testing::ElementsAre;

std::string stat_line(std::string_view comm) {
    std::string text = fmt::format("77 ({}) T 5 70 60 34816 -1 4194560", comm);
    // fields 10 to 52; field N has value N, but for the ones with a meaning of their own
    for (int i = 10; i <= 52; ++i)
        text += i == 25 ? std::string(" 18446744073709551615") : fmt::format(" {}", i == 19 ? -5 : i);
    return text + "\n";
}

TEST(ProcStat, FieldsAndOddNames) {
    for (std::string comm : {"sh", "a b", "x) S 1 (y", "new\nline", ")", ""}) {
        auto stat = parse_stat(stat_line(comm));
        ASSERT_TRUE(stat) << stat.error().line();
        EXPECT_EQ(stat->comm, comm);
        EXPECT_EQ(stat->pid, 77);
        EXPECT_EQ(stat->state, 'T');
        EXPECT_EQ(stat->ppid, 5);
        EXPECT_EQ(stat->session, 60);
        EXPECT_EQ(stat->flags, 4194560u);
        EXPECT_EQ(stat->nice, -5);
        EXPECT_EQ(stat->start_time, 22u);
        EXPECT_EQ(stat->start_stack, 28u);
        EXPECT_EQ(stat->start_brk, 47u);
        EXPECT_EQ(stat->env_end, 51u);
        EXPECT_EQ(stat->exit_code, 52u);
    }
}

TEST(ProcStat, DamagedTextIsAnError) {
    std::string whole = stat_line("sh");
    for (size_t cut = 0; cut + 4 < whole.size(); cut += 3)
        EXPECT_FALSE(parse_stat(whole.substr(0, cut))) << cut;
}

TEST(ProcStat, ReadsThisProcess) {
    auto stat = read_stat(getpid());
    ASSERT_TRUE(stat) << stat.error().line();
    EXPECT_EQ(stat->pid, getpid());
    EXPECT_EQ(stat->ppid, getppid());
    EXPECT_EQ(stat->session, getsid(0));
    EXPECT_GT(stat->end_code, stat->start_code);
    EXPECT_GT(stat->env_end, stat->arg_start);
}

TEST(ProcStatus, ReadsThisProcess) {
    ASSERT_EQ(prctl(PR_SET_NAME, "a\nb\\c "), 0);
    sigset_t old;
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR2);
    sigprocmask(SIG_BLOCK, &blocked, &old);
    raise(SIGUSR2);
    auto status = read_thread_status(getpid(), gettid());
    ASSERT_TRUE(status) << status.error().line();
    EXPECT_EQ(status->name, "a\nb\\c ");
    EXPECT_EQ(status->tgid, getpid());
    EXPECT_EQ(status->sig_pending, 1u << (SIGUSR2 - 1));
    EXPECT_EQ(status->sig_blocked & (1u << (SIGUSR2 - 1)), 1u << (SIGUSR2 - 1));
    EXPECT_EQ(status->uids[1], geteuid());
    EXPECT_EQ(status->ns_pids.back(), getpid());
    mode_t mask = umask(0);
    umask(mask);
    EXPECT_EQ(status->umask, mask);
    signal(SIGUSR2, SIG_IGN);  // discards the pending one
    signal(SIGUSR2, SIG_DFL);
    sigprocmask(SIG_SETMASK, &old, nullptr);
}

TEST(ProcStatus, Lists) {
    auto status = parse_status("Name:\tx\nState:\tt (tracing stop)\nPid:\t9\nUid:\t1\t2\t3\t4\n"
                               "Groups:\t4 24 1000 \nNSpid:\t9\t1\nSigCgt:\t8000000000000001\n");
    ASSERT_TRUE(status) << status.error().line();
    EXPECT_EQ(status->state, 't');
    EXPECT_THAT(status->uids, ElementsAre(1, 2, 3, 4));
    EXPECT_THAT(status->groups, ElementsAre(4, 24, 1000));
    EXPECT_THAT(status->ns_pids, ElementsAre(9, 1));
    EXPECT_EQ(status->sig_caught, 0x8000000000000001u);
    EXPECT_FALSE(parse_status("Name:\tx\nPid:\t9\nUid:\t1\t2\n"));
    EXPECT_FALSE(parse_status("Name:\tx\n"));
}

TEST(ProcMaps, ReadsRealMappings) {
    void* memory = mmap(nullptr, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(memory, MAP_FAILED);
    madvise(memory, 4096, MADV_DONTFORK);
    mprotect(static_cast<char*>(memory) + 8192, 8192, PROT_NONE);
    auto mappings = read_smaps(getpid());
    ASSERT_TRUE(mappings) << mappings.error().line();
    auto start = reinterpret_cast<uint64_t>(memory);
    unsigned found = 0;
    for (const auto& mapping : *mappings) {
        if (mapping.start == start) {
            EXPECT_EQ(mapping.end, start + 4096);
            EXPECT_EQ(mapping.prot, unsigned{PROT_READ | PROT_WRITE});
            EXPECT_TRUE(mapping.vm_flags & kVmDontFork);
            EXPECT_FALSE(mapping.has_file());
            ++found;
        }
        if (mapping.start == start + 8192) {
            EXPECT_EQ(mapping.prot, 0u);
            EXPECT_FALSE(mapping.vm_flags & kVmDontFork);
            ++found;
        }
    }
    EXPECT_EQ(found, 2u);
    auto plain = read_maps(getpid());
    ASSERT_TRUE(plain);
    EXPECT_TRUE(std::any_of(plain->begin(), plain->end(),
                            [](const auto& m) { return m.name == "[stack]"; }));
    munmap(memory, 16384);
}

TEST(ProcMaps, OneLine) {
    auto mapping = parse_mapping(
        "7f0-7f1 r-xs 00026000 fe:0a 332835      /tmp/with  blanks\\012and newline (deleted)");
    ASSERT_TRUE(mapping) << mapping.error().line();
    EXPECT_EQ(mapping->size(), 1u);
    EXPECT_EQ(mapping->name, "/tmp/with  blanks\nand newline (deleted)");
    EXPECT_EQ(mapping->offset, 0x26000u);
    EXPECT_EQ(mapping->dev_major, 0xfeu);
    EXPECT_EQ(mapping->inode, 332835u);
    EXPECT_TRUE(mapping->shared);
    EXPECT_FALSE(parse_mapping("7f0-7f0 r-xs 0 fe:0a 3"));
    EXPECT_FALSE(parse_mapping("7f0-7f1 r-x 0 fe:0a 3"));
    EXPECT_FALSE(parse_mapping("hello"));
    EXPECT_FALSE(parse_smaps("Size: 4 kB\n"));
}

TEST(ProcTask, Limits) {
    rlimit wanted{123, 456};
    rlimit old{};
    getrlimit(RLIMIT_NOFILE, &old);
    setrlimit(RLIMIT_NOFILE, &wanted);
    auto limits = read_limits(getpid());
    ASSERT_TRUE(limits) << limits.error().line();
    EXPECT_EQ((*limits)[RLIMIT_NOFILE].soft, 123u);
    EXPECT_EQ((*limits)[RLIMIT_NOFILE].hard, 456u);
    for (int i = 0; i < 16; ++i) {
        rlimit now{};
        ASSERT_EQ(getrlimit(static_cast<__rlimit_resource>(i), &now), 0);
        EXPECT_EQ((*limits)[static_cast<size_t>(i)].soft, now.rlim_cur) << i;
        EXPECT_EQ((*limits)[static_cast<size_t>(i)].hard, now.rlim_max) << i;
    }
    EXPECT_FALSE(parse_limits("Max cpu time  unlimited  unlimited  seconds\n"));
}

TEST(ProcTask, Auxv) {
    auto auxv = read_auxv(getpid());
    ASSERT_TRUE(auxv);
    std::map<uint64_t, uint64_t> pairs;
    for (size_t i = 0; i + 1 < auxv->size(); i += 2)
        pairs[(*auxv)[i]] = (*auxv)[i + 1];
    EXPECT_EQ(pairs[AT_SYSINFO_EHDR], getauxval(AT_SYSINFO_EHDR));
    EXPECT_EQ(pairs[AT_ENTRY], getauxval(AT_ENTRY));
    EXPECT_EQ(auxv->at(auxv->size() - 2), uint64_t{AT_NULL});
    EXPECT_FALSE(parse_auxv("123"));
}

TEST(ProcTask, Timers) {
    sigevent event{};
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGUSR1;
    event.sigev_value.sival_ptr = reinterpret_cast<void*>(0xabcdef01);
    timer_t first;
    ASSERT_EQ(timer_create(CLOCK_BOOTTIME, &event, &first), 0);
    event.sigev_notify = SIGEV_THREAD_ID;
    event._sigev_un._tid = gettid();
    timer_t second;
    ASSERT_EQ(timer_create(CLOCK_MONOTONIC, &event, &second), 0);
    auto timers = read_timers(getpid());
    ASSERT_TRUE(timers) << timers.error().line();
    ASSERT_EQ(timers->size(), 2u);
    std::sort(timers->begin(), timers->end(), [](auto& a, auto& b) { return a.id < b.id; });
    EXPECT_EQ((*timers)[0].clock, CLOCK_BOOTTIME);
    EXPECT_EQ((*timers)[0].signal, SIGUSR1);
    EXPECT_EQ((*timers)[0].value, 0xabcdef01u);
    EXPECT_EQ((*timers)[0].notify, SIGEV_SIGNAL);
    EXPECT_EQ((*timers)[1].notify, SIGEV_SIGNAL | SIGEV_THREAD_ID);
    EXPECT_EQ((*timers)[1].thread, gettid());
    timer_delete(first);
    timer_delete(second);
    EXPECT_FALSE(parse_timers("signal: 3/4\n"));
    EXPECT_FALSE(parse_timers("ID: 1\nnotify: loud/pid.3\n"));
}

TEST(ProcTask, TimeOffsetsAndCgroup) {
    auto offsets = parse_time_offsets("monotonic      86400  5\nboottime       -3      0\n");
    ASSERT_TRUE(offsets);
    EXPECT_EQ(offsets->monotonic, 86400000000005);
    EXPECT_EQ(offsets->boottime, -3000000000);
    EXPECT_FALSE(parse_time_offsets("monotonic x 5\n"));
    EXPECT_EQ(parse_cgroup2_path("4:memory:/a\n0::/b/c d.service\n"), "/b/c d.service");
    EXPECT_EQ(parse_cgroup2_path("4:memory:/a\n"), std::nullopt);
}

TEST(ProcTask, ThreadsAndChildren) {
    int wait[2];
    ASSERT_EQ(pipe(wait), 0);
    std::thread other([&] {
        char byte;
        (void)!read(wait[0], &byte, 1);
    });
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pause();
        _exit(0);
    }
    auto tids = read_task_list(getpid());
    auto children = read_children(getpid());
    kill(child, SIGKILL);
    (void)!write(wait[1], "x", 1);
    other.join();
    ASSERT_TRUE(tids);
    EXPECT_EQ(tids->size(), 2u);
    EXPECT_EQ(tids->front(), getpid());
    ASSERT_TRUE(children);
    EXPECT_THAT(*children, Contains(child));
    EXPECT_EQ(read_task_list(0x3fffffff).error().kind, ErrorKind::kGone);
    auto descriptors = read_descriptor_list(getpid());
    ASSERT_TRUE(descriptors);
    EXPECT_THAT(*descriptors, Contains(wait[0]));
    EXPECT_TRUE(std::is_sorted(descriptors->begin(), descriptors->end()));
    EXPECT_EQ(read_descriptor_list(0x3fffffff).error().kind, ErrorKind::kGone);
    close(wait[0]);
    close(wait[1]);
}

TEST(ProcTask, NamespaceId) {
    auto id = read_namespace_id(getpid(), "net");
    ASSERT_TRUE(id);
    EXPECT_GT(*id, 0u);
    EXPECT_EQ(read_namespace_id(getpid(), "no-such-kind").value_or(9), 0u);
}

}  // namespace
}  // namespace checkpointd
