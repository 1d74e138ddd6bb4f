// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/usage.h"

#include <gtest/gtest.h>

#include "plugins/cuda/one_process_test_util.h"

namespace checkpointd::cuda {
namespace {

TEST(CudaUsage, WhatNobodyTellsIsAllThatIsTaken) {
    OneProcess driver;
    Usage usage(two_devices());
    driver.usage.code = kNotSupported;
    ASSERT_TRUE(usage.measure(driver.process(), kDeadline));
    EXPECT_FALSE(usage.is_all_known());
    EXPECT_TRUE(usage.known().empty());
    EXPECT_EQ(usage.bytes_of(getpid()), 145ull << 30);
    driver.usage = two_devices();
    ASSERT_TRUE(usage.measure(driver.process(), kDeadline));
    EXPECT_TRUE(usage.is_all_known());
    EXPECT_EQ(usage.bytes_of(getpid()), 160ull << 30);
}

TEST(CudaUsage, WhatWasMappedIsWhatItHad) {
    Usage usage(two_devices());
    usage.set(1, {{*parse_uuid(kOne), 5000, 4096}, {*parse_uuid(kTwo), 1000, 0}});
    usage.set(2, {{*parse_uuid(kOne), 7, 0}});
    EXPECT_TRUE(usage.is_all_known());
    EXPECT_EQ(usage.bytes_of(1), 6000u);
    ASSERT_EQ(usage.known().size(), 3u);
    EXPECT_EQ(usage.known()[2].size, 7u);
}

}  // namespace
}  // namespace checkpointd::cuda
