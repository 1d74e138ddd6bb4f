// SPDX-License-Identifier: LGPL-2.1-or-later
#include <cerrno>
#include <cstring>
#include <sys/syscall.h>

#include <gtest/gtest.h>

#include "core/arch/x86_64/restart.h"
#include "core/arch/x86_64/stub.h"

namespace checkpointd {
namespace {

user_regs_struct stopped_in(long nr, long answer) {
    user_regs_struct regs{};
    regs.rip = 0x1002;
    regs.orig_rax = static_cast<uint64_t>(nr);
    regs.rax = static_cast<uint64_t>(answer);
    return regs;
}

TEST(Restart, CallIsMadeAgain) {
    user_regs_struct out = resume_in_user_mode(stopped_in(SYS_read, -kRestartSys));
    EXPECT_EQ(out.rip, 0x1000u);
    EXPECT_EQ(out.rax, static_cast<uint64_t>(SYS_read));
    EXPECT_EQ(out.orig_rax, ~0ull);
}

TEST(Restart, SleepGoesOnThroughItsRestartBlock) {
    user_regs_struct out = resume_in_user_mode(stopped_in(SYS_nanosleep, -kRestartBlock));
    EXPECT_EQ(out.rip, 0x1000u);
    EXPECT_EQ(out.rax, static_cast<uint64_t>(SYS_restart_syscall));
}

TEST(Restart, FinishedCallKeepsItsAnswer) {
    user_regs_struct out = resume_in_user_mode(stopped_in(SYS_read, 7));
    EXPECT_EQ(out.rip, 0x1002u);
    EXPECT_EQ(out.rax, 7u);
}

TEST(Restart, OutsideOfACallNothingIsARestart) {
    user_regs_struct regs = stopped_in(-1, -kRestartSys);
    EXPECT_EQ(restart_kind(regs), 0);
    EXPECT_EQ(resume_in_user_mode(regs).rip, 0x1002u);
}

TEST(Restart, HandlerEndsPauseButNotRead) {
    EXPECT_EQ(resume_after_handler(stopped_in(SYS_pause, -kRestartNoHand)).rax,
              static_cast<uint64_t>(-EINTR));
    EXPECT_EQ(resume_after_handler(stopped_in(SYS_read, -kRestartSys)).rax,
              static_cast<uint64_t>(SYS_read));
}

TEST(Restart, EpollWithoutTimeoutWaitsAgain) {
    user_regs_struct regs = stopped_in(SYS_epoll_wait, -EINTR);
    regs.r10 = static_cast<uint32_t>(-1);
    EXPECT_TRUE(repair_spurious_eintr(regs));
    EXPECT_EQ(restart_kind(regs), kRestartNoHand);
}

TEST(Restart, LongTimeoutKeepsEintr) {
    user_regs_struct regs = stopped_in(SYS_epoll_wait, -EINTR);
    regs.r10 = 60000;
    EXPECT_FALSE(repair_spurious_eintr(regs));
    user_regs_struct read = stopped_in(SYS_read, -EINTR);
    EXPECT_FALSE(repair_spurious_eintr(read));
}

TEST(Stub, HasItsSizeAndIsKnownAgain) {
    for (bool may_poll : {true, false}) {
        StubReturn back{};
        back.may_poll = may_poll;
        std::vector<std::byte> stub = assemble_stub(back);
        ASSERT_EQ(stub.size(), kStubSize);
        EXPECT_TRUE(looks_like_stub(stub.data()));
    }
    std::vector<std::byte> zeros(kStubSize);
    EXPECT_FALSE(looks_like_stub(zeros.data()));
}

TEST(Stub, PlacesAreCountedFromTheEndOfThePage) {
    EXPECT_EQ(stub_place_of(0x1fff), 0x2000u - kStubSize);
    EXPECT_EQ(stub_place_of(0x2000 - kStubSize), 0x2000u - kStubSize);
    EXPECT_EQ(stub_place_of(0x2000 - kStubSize - 1), 0x2000u - 2 * kStubSize);
    EXPECT_FALSE(stub_place_of(0x1000));
}

// From every instruction boundary that matters, the thread is led to the same place.
TEST(Stub, WayHomeOfAPause) {
    StubReturn back{};
    user_regs_struct pause = stopped_in(SYS_pause, -kRestartNoHand);
    pause.rdi = 77;
    back.plain = resume_in_user_mode(pause);
    back.after_handler = resume_after_handler(pause);
    back.signal_mask = 5;
    std::vector<std::byte> stub = assemble_stub(back);
    user_regs_struct inside{};
    inside.rbx = 9;
    for (uint64_t at : {0, 2, 4, 67}) {
        inside.rip = 0x5000 + at;
        std::optional<WayHome> home = way_home(stub.data(), 0x5000, inside);
        ASSERT_TRUE(home);
        EXPECT_EQ(home->signal_mask, 5u);
        EXPECT_EQ(home->regs.rip, pause.rip);
        EXPECT_EQ(home->regs.rax, pause.rax);
        EXPECT_EQ(home->regs.orig_rax, pause.orig_rax);
        EXPECT_EQ(home->regs.rdi, 77u);
        EXPECT_EQ(home->regs.rbx, 9u);
    }
    inside.rip = 0x5000 + 96;  // behind ppoll
    inside.rax = static_cast<uint64_t>(-EINTR);
    std::optional<WayHome> home = way_home(stub.data(), 0x5000, inside);
    ASSERT_TRUE(home);
    EXPECT_EQ(home->regs.rax, static_cast<uint64_t>(-EINTR));
    EXPECT_EQ(home->regs.rip, pause.rip);
    inside.rip = 0x5000 + 230;
    EXPECT_FALSE(way_home(stub.data(), 0x5000, inside));
}

TEST(Stub, KnowsThatThereIsAChild) {
    user_regs_struct inside{};
    for (uint64_t at : {0, 2, 4, 59, 67}) {
        inside.rip = 0x5000 + at;
        EXPECT_FALSE(is_with_child(0x5000, inside)) << at;
    }
    for (uint64_t at : {6, 9, 45, 58}) {
        inside.rip = 0x5000 + at;
        EXPECT_TRUE(is_with_child(0x5000, inside)) << at;
    }
    user_regs_struct again = stopped_in(SYS_clone, -kRestartNoIntr);
    again.rip = 0x5006;
    EXPECT_FALSE(is_with_child(0x5000, again));
}

}  // namespace
}  // namespace checkpointd
