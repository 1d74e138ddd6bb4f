// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/host/channel.h"

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <string>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>
#include <vector>

#include "plugins/host/deadline.h"

namespace checkpointd {
namespace {

struct Received {
    ssize_t size = 0;
    int code = 0;
    std::string text;
    std::vector<ScopedFd> fds;
};

class ChannelTest : public testing::Test {
  protected:
    void SetUp() override {
        auto channel = Channel::open();
        ASSERT_TRUE(channel);
        channel_ = std::move(*channel);
    }
    int send(const std::string& text, const std::vector<int>& fds = {}) const {
        return Channel::send(channel_->task_end(), text.data(), text.size(), fds.data(), fds.size());
    }
    Received receive(size_t room = 10, size_t bytes = Channel::kMostBytes, uint64_t deadline = UINT64_MAX,
                     int cancel_fd = -1) {
        std::string text(bytes, '\0');
        std::vector<int> fds(room);
        Received got;
        got.size = channel_->receive(text.data(), bytes, fds.data(), &room, deadline, cancel_fd);
        got.code = got.size < 0 ? errno : 0;
        got.text = text.substr(0, got.size < 0 ? 0 : static_cast<size_t>(got.size));
        for (size_t i = 0; i < room; ++i)
            got.fds.emplace_back(fds[i]);
        return got;
    }
    static uint64_t soon() { return deadline_usec(std::chrono::steady_clock::now() + std::chrono::milliseconds(20)); }
    static size_t open_descriptors() {
        size_t count = 0;
        for (int fd = 0; fd < 1000; ++fd)
            count += fcntl(fd, F_GETFD) >= 0;
        return count;
    }

    std::unique_ptr<Channel> channel_;
};

TEST_F(ChannelTest, MessagesComeInOrderWithTheirDescriptors) {
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    EXPECT_EQ(send("one"), 0);
    EXPECT_EQ(send("two", {ends[0], ends[1]}), 0);
    EXPECT_EQ(send(std::string(Channel::kMostBytes, 'x'), std::vector<int>(Channel::kMostDescriptors, ends[0])), 0);
    EXPECT_EQ(receive().text, "one");
    const Received two = receive();
    EXPECT_EQ(two.text, "two");
    ASSERT_EQ(two.fds.size(), 2u);
    EXPECT_EQ(fcntl(two.fds[0].get(), F_GETFD), FD_CLOEXEC);
    EXPECT_EQ(write(two.fds[1].get(), "!", 1), 1);
    char byte = 0;
    EXPECT_EQ(read(ends[0], &byte, 1), 1);
    const Received most = receive(Channel::kMostDescriptors);
    EXPECT_EQ(most.text.size(), Channel::kMostBytes);
    EXPECT_EQ(most.fds.size(), Channel::kMostDescriptors);
    close(ends[0]);
    close(ends[1]);
}

TEST_F(ChannelTest, WhatIsTooMuchIsRefused) {
    EXPECT_EQ(send(""), -1);
    EXPECT_EQ(errno, EINVAL);
    EXPECT_EQ(send(std::string(Channel::kMostBytes + 1, 'x')), -1);
    EXPECT_EQ(errno, EMSGSIZE);
    EXPECT_EQ(send("x", std::vector<int>(Channel::kMostDescriptors + 1, 0)), -1);
    EXPECT_EQ(errno, EINVAL);
}

TEST_F(ChannelTest, WithoutRoomNothingLeaks) {
    const size_t before = open_descriptors();
    EXPECT_EQ(send("text", {0, 1}), 0);
    EXPECT_EQ(receive(1).code, EMSGSIZE);
    EXPECT_EQ(send("text", {0, 1}), 0);
    EXPECT_EQ(receive(2, 3).code, EMSGSIZE);
    EXPECT_EQ(open_descriptors(), before);
}

TEST_F(ChannelTest, EndsWhenNobodyCanSend) {
    EXPECT_EQ(send("last"), 0);
    channel_->no_more_senders();
    EXPECT_EQ(receive().text, "last");
    EXPECT_EQ(receive().size, 0);
    EXPECT_EQ(receive().code, 0);
}

TEST_F(ChannelTest, WaitsNoLongerThanItMay) {
    EXPECT_EQ(receive(1, 10, soon()).code, ETIMEDOUT);
    EXPECT_EQ(receive(1, 10, 0).code, ETIMEDOUT);
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    std::jthread canceller([&] { EXPECT_EQ(write(ends[1], "x", 1), 1); });
    EXPECT_EQ(receive(1, 10, UINT64_MAX, ends[0]).code, ECANCELED);
    close(ends[0]);
    close(ends[1]);
}

TEST_F(ChannelTest, WhoWaitsHearsOfAFailure) {
    std::jthread failing([this] { channel_->cancel(); });
    EXPECT_EQ(receive().code, ECANCELED);
}

TEST_F(ChannelTest, WhoSendsDoesNotWaitForNobody) {
    int code = 0;
    std::jthread sender([&] {
        while (send(std::string(Channel::kMostBytes, 'x')) == 0) {
        }
        code = errno;
    });
    usleep(20000);  // by now it waits for room, or the better for it
    channel_->no_more_receivers();
    sender.join();
    EXPECT_EQ(code, EPIPE);
}

}  // namespace
}  // namespace checkpointd
