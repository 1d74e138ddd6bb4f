// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/tell.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <atomic>
#include <csignal>
#include <filesystem>
#include <thread>

#include "units/tell_section.h"

namespace checkpointd {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

TellSettings settings_from(const std::string& text, const std::string& unit = "a@b.service") {
    TellSettings settings;
    auto errors = read_tell_section(text, "f", unit, settings);
    EXPECT_TRUE(errors.empty()) << errors.front().text();
    return settings;
}

TEST(TellSection, OnlyItsOwnLinesCount) {
    auto settings = settings_from(
        "[Service]\nTellBefore=SIGHUP\nExecStart=/bin/a \\\n[X-Checkpointd]\n"
        "TellAfter=SIGHUP\n[X-Checkpointd]\n# TellAfter=SIGHUP\n; x\n"
        " TellBefore = SIGUSR1 \nTellSocket=%t/%p-%i/%%n\n[Install]\nTellAfter=x\n");
    EXPECT_EQ(settings.values(), (std::map<std::string, std::string>{{"before", "SIGUSR1"},
                                                                     {"socket", "/run/a-b/%n"}}));
}

TEST(TellSection, LaterFilesWin) {
    TellSettings settings = settings_from(
        "[X-Checkpointd]\nTellBefore=SIGUSR1\nTellAfter=SIGUSR2\n"
        "TellSocket=/a\nTellWhenSilent=go-on\n");
    EXPECT_TRUE(
        read_tell_section(
            "[X-Checkpointd]\nTellBefore=\nTellAfter=none\nTellSocket=/b\nTellWhenSilent=\n", "g",
            "x.service", settings)
            .empty());
    EXPECT_EQ(settings.values(),
              (std::map<std::string, std::string>{{"after", "none"}, {"socket", "/b"}}));
    TellSettings policy;
    ASSERT_TRUE(policy.set("socket", "none"));
    settings.lay_over(policy);
    EXPECT_FALSE(settings.asks());
}

TEST(TellSection, MistakesAreNamedAllAtOnce) {
    TellSettings settings;
    auto errors = read_tell_section(
        "[X-Checkpointd]\nTellBefore=SIGKILL\nnothing\nTold=x\nTellSocket=%h/x\n"
        "TellSocket=x\nTellAfter=SIGUSR2\n",
        "/f.conf", "x.service", settings);
    ASSERT_EQ(errors.size(), 5u);
    for (size_t i = 0; i < errors.size(); ++i)
        EXPECT_EQ(errors[i].object, fmt::format("/f.conf:{}", i + 2));
    EXPECT_EQ(settings.after, SIGUSR2) << "the good lines count";
}

bool can_be_told(int signal) {
    TellSettings settings;
    settings.before = signal;
    Blockers blockers("x.service");
    check_can_be_told(getpid(), settings, blockers);
    return std::move(blockers).result().has_value();
}

void block(int signal, int how) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    pthread_sigmask(how, &set, nullptr);
}

// The kernel shows a signal that a thread waits for as one that it does not block.
TEST(Tell, ASignalThatWouldEndTheProgramIsNotSent) {
    const int signal = SIGRTMIN + 5;
    EXPECT_FALSE(can_be_told(signal)) << "nobody handles it";
    EXPECT_TRUE(can_be_told(SIGURG)) << "does nothing by default";
    std::atomic<bool> leave = false, is_there = false;
    std::thread other([&] {
        is_there = true;  // up to here the C library blocks all signals
        while (!leave)
            usleep(1000);
    });
    while (!is_there)
        usleep(1000);
    block(signal, SIG_BLOCK);
    EXPECT_FALSE(can_be_told(signal)) << "the other thread does not block it";
    leave = true;
    other.join();
    EXPECT_TRUE(can_be_told(signal)) << "all threads block it";
    std::thread waiter([&] {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, signal);
        int got;
        sigwait(&set, &got);
    });
    for (int i = 0; i < 50; ++i) {  // on its way into the call, and in it
        EXPECT_TRUE(can_be_told(signal)) << "somebody waits for it";
        usleep(1000);
    }
    kill(getpid(), signal);
    waiter.join();
    block(signal, SIG_UNBLOCK);
    std::signal(signal, SIG_IGN);
    EXPECT_TRUE(can_be_told(signal)) << "ignored";
    std::signal(signal, SIG_DFL);
}

// We are the program ourselves.
class TellSelf : public ::testing::Test {
  protected:
    void SetUp() override {
        char name[] = "/tmp/units-test-XXXXXX";
        ASSERT_NE(mkdtemp(name), nullptr);
        dir_ = name;
        facts_.id = "x.service";
        facts_.main_pid = getpid();
        facts_.tell.socket = dir_ + "/door";
    }
    void TearDown() override { std::filesystem::remove_all(dir_); }

    void open_door() {
        door_.reset(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
        sockaddr_un address = {};
        address.sun_family = AF_UNIX;
        facts_.tell.socket->copy(address.sun_path, sizeof(address.sun_path) - 1);
        ASSERT_EQ(bind(door_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    }

    // The next message, and the descriptor that came with it.
    std::string hear(ScopedFd* descriptor = nullptr) {
        char text[512];
        alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
        iovec part = {text, sizeof(text)};
        msghdr message = {};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        message.msg_control = control;
        message.msg_controllen = sizeof(control);
        ssize_t got = -1;
        for (int i = 0; i < 60'000 && got < 0; ++i, usleep(1000))
            got = recvmsg(door_.get(), &message, MSG_CMSG_CLOEXEC);
        if (cmsghdr* header = CMSG_FIRSTHDR(&message); got > 0 && header && descriptor)
            descriptor->reset(*reinterpret_cast<int*>(CMSG_DATA(header)));
        return std::string(text, static_cast<size_t>(std::max<ssize_t>(got, 0)));
    }

    Result<void> before(milliseconds patience = seconds(100)) {
        return tell_before(facts_, WayDown::kSnapshot, steady_clock::now() + patience);
    }

    std::string dir_;
    UnitFacts facts_;
    ScopedFd door_;
};

TEST_F(TellSelf, ReadyWhenTheDescriptorIsClosed) {
    open_door();
    std::atomic<bool> is_ready = false;
    std::thread program([&] {
        ScopedFd descriptor;
        const std::string text = hear(&descriptor);
        EXPECT_TRUE(text.starts_with("EVENT=before\nMODE=snapshot\nUNIT=x.service\nTIMEOUT_USEC="))
            << text;
        EXPECT_TRUE(descriptor);
        usleep(50000);
        is_ready = true;
    });
    auto told = before();
    EXPECT_TRUE(told) << told.error().text();
    EXPECT_TRUE(is_ready) << "it waits for the program";
    program.join();
    EXPECT_TRUE(tell_after(facts_, getpid(), TellOutcome::kWentOn));
    EXPECT_EQ(hear(), "EVENT=after\nRESULT=went-on\nUNIT=x.service\n");
}

TEST_F(TellSelf, SilenceIsAFailureUnlessItMayPass) {
    auto absent = before();
    EXPECT_FALSE(absent) << "nobody is there";
    open_door();
    auto silent = before(milliseconds(50));
    ASSERT_FALSE(silent);
    EXPECT_EQ(silent.error().kind, ErrorKind::kTimeout);
    facts_.tell.goes_on_if_silent = true;
    EXPECT_TRUE(before(milliseconds(50)));
}

TEST_F(TellSelf, LinksLeadNowhereElse) {
    open_door();
    std::filesystem::create_symlink(dir_, dir_ + "/link");
    facts_.tell.socket = dir_ + "/link/door";
    EXPECT_TRUE(tell_after(facts_, getpid(), TellOutcome::kFailed)) << "its own root is ours";
    facts_.tell.socket = fmt::format("/proc/self/root{}/door", dir_);
    EXPECT_FALSE(tell_after(facts_, getpid(), TellOutcome::kFailed)) << "by a magic link";
}

volatile sig_atomic_t seen_value = 0;

TEST_F(TellSelf, SignalsCarryAValue) {
    struct sigaction action = {};
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    action.sa_sigaction = [](int, siginfo_t* info, void*) {
        seen_value = info->si_value.sival_int;
    };
    sigaction(SIGUSR1, &action, nullptr);
    facts_.tell = {};
    facts_.tell.before = SIGUSR1;
    ASSERT_TRUE(before());
    EXPECT_EQ(seen_value, 3);
    facts_.tell.after = SIGUSR1;
    UndoTable table;
    add_tell_undo_kind(table);
    auto journal = Journal::create(dir_ + "/undo", table);
    ASSERT_TRUE(journal);
    ASSERT_TRUE(undo_by_telling(*journal, facts_, getpid(), TellOutcome::kFailed));
    ASSERT_TRUE(journal->rollback());
    EXPECT_EQ(seen_value, 18);
    EXPECT_TRUE(journal->close());
}

}  // namespace
}  // namespace checkpointd
