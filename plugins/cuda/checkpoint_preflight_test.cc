// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/checkpoint_preflight.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "plugins/cuda/one_process_test_util.h"

namespace checkpointd::cuda {
namespace {

using testing::Each;
using testing::HasSubstr;

// One that the driver finds in order.
class CudaCheckpointPreflight : public testing::Test {
  protected:
    CudaCheckpointPreflight() { driver_.state = ProcessState::kRunning; }
    Result<CheckpointFacts> check() {
        return check_checkpoint(driver_, settings_, {getpid()}, {driver_.process()}, kDeadline);
    }
    OneProcess driver_;
    Settings settings_;
};

TEST_F(CudaCheckpointPreflight, OnlyAsks) {
    driver_.usage.device_count = 1;
    driver_.usage.devices[0] = {*parse_uuid(kOne), 1 << 20, 0};
    auto facts = check();
    ASSERT_TRUE(facts) << facts.error().text();
    EXPECT_TRUE(facts->stores);
    EXPECT_EQ(facts->usage.bytes_of(getpid()), 1u << 20);
    EXPECT_THAT(driver_.asked, Each(testing::AnyOf(Operation::kThread, Operation::kMemory, Operation::kUsage, Operation::kState)));
}

TEST_F(CudaCheckpointPreflight, AllThatIsInTheWayIsToldAtOnce) {
    settings_.storage = StorageWanted::kCustom;
    driver_.devices.offers_storage = 0;
    driver_.devices.devices[0].total_bytes = driver_.usage.devices[0].total_bytes = uint64_t{1} << 60;
    driver_.usage.device_count = 1;
    driver_.state = ProcessState::kLocked;
    auto facts = check();
    ASSERT_FALSE(facts);
    for (const char* told : {"gives device memory to nobody", "host memory: has", "is locked or checkpointed by somebody else",
                             "is of CUDA 13.4 and has 2 devices"})
        EXPECT_THAT(facts.error().text(), HasSubstr(told));
}

TEST_F(CudaCheckpointPreflight, RoomCountsWhereItIsNeeded) {
    driver_.devices.devices[0].total_bytes = driver_.usage.devices[0].total_bytes = uint64_t{1} << 60;
    driver_.usage.device_count = 1;
    EXPECT_TRUE(check()) << "it goes to files";
    settings_.storage = StorageWanted::kHost;
    EXPECT_FALSE(check());
    settings_.checks_memory = false;
    auto facts = check();
    ASSERT_TRUE(facts) << facts.error().text();
    EXPECT_FALSE(facts->stores);
}

TEST_F(CudaCheckpointPreflight, OfWhoHasNoDeviceOpenTheDriverIsNotAsked) {
    driver_.devices.code = kNotInitialized;
    EXPECT_TRUE(check_others(&driver_, {getpid()}, kDeadline));
    EXPECT_TRUE(driver_.asked.empty());
    EXPECT_TRUE(check_newcomers({getpid()}, {}));
}

}  // namespace
}  // namespace checkpointd::cuda
