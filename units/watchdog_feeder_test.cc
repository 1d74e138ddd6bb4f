// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/watchdog_feeder.h"

#include <atomic>
#include <gtest/gtest.h>
#include <unistd.h>

#include "core/kernel/sleeper_test_util.h"
#include "units/unit_process.h"

namespace checkpointd {
namespace {

using std::chrono::milliseconds;
using testing::Sleeper;

bool comes_to(const std::atomic<int>& count, int wanted) {
    for (int i = 0; i < 30000 && count < wanted; ++i)
        usleep(1000);
    return count >= wanted;
}

TEST(WatchdogFeeder, FeedsWhateverItsMakerDoes) {
    std::atomic<int> fed = 0;
    {
        WatchdogFeeder feeder(*open_pidfd(getpid()), milliseconds(5), [&] { ++fed; });
        EXPECT_TRUE(comes_to(fed, 5));
    }
    const int last = fed;
    usleep(50000);
    EXPECT_EQ(fed, last) << "and not once more";
}

TEST(WatchdogFeeder, ItsEndWaitsForNoInterval) {
    std::atomic<int> fed = 0;
    WatchdogFeeder feeder(*open_pidfd(getpid()), std::chrono::hours(24), [&] { ++fed; });
    EXPECT_TRUE(comes_to(fed, 1)) << "the first is fed at once";
}

TEST(WatchdogFeeder, EndsWithTheProcess) {
    const Sleeper sleeper;
    std::atomic<int> fed = 0;
    WatchdogFeeder feeder(*open_pidfd(sleeper.pid()), milliseconds(1), [&] { ++fed; });
    EXPECT_TRUE(comes_to(fed, 1));
    sleeper.end();
    const int last = fed;
    usleep(100000);
    EXPECT_LE(fed, last + 1) << "of that one it had not heard yet";
}

TEST(WatchdogFeeder, WithoutAWatchdogThereIsNone) {
    EXPECT_EQ(WatchdogFeeder::make(getpid(), 0), nullptr);
    EXPECT_EQ(WatchdogFeeder::make(0, 1000000), nullptr);
}

}  // namespace
}  // namespace checkpointd
