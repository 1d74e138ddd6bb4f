// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/device_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "plugins/cuda/one_process_test_util.h"

namespace checkpointd::cuda {
namespace {

using testing::HasSubstr;

const Uuid kA = *parse_uuid(kOne), kB = *parse_uuid(kTwo), kC = *parse_uuid("GPU-12345678-1234-1234-1234-123456789abc");

Answer have(const std::vector<Uuid>& uuids) {
    Answer here;
    for (const Uuid& uuid : uuids)
        here.devices[here.device_count++] = {uuid, 1, 1};
    return here;
}

// As "A>B B>A".
std::string told(const CompleteMap& map) {
    const auto name = [](const Uuid& uuid) { return uuid == kA ? 'A' : uuid == kB ? 'B' : 'C'; };
    std::string text;
    for (const GpuPair& pair : map.pairs)
        text += fmt::format("{}{}>{}", text.empty() ? "" : " ", name(pair.from), name(pair.to));
    return text;
}

TEST(CudaDeviceMap, WhereNoneMovesTheDriverIsToldNothing) {
    EXPECT_EQ(told(complete_map({{kA, 1}, {kB, 0}}, {}, have({kA, kB}))), "");
    EXPECT_EQ(told(complete_map({{kA, 1}}, {{kA, kA}, {kB, kC}}, have({kA, kC}))), "") << "another image's";
    EXPECT_EQ(told(complete_map({{kA, 1}, {kB, 0}}, {}, have({kA, kC}))), "") << "nobody misses B";
}

TEST(CudaDeviceMap, OneThatMovesHasAllNamed) {
    EXPECT_EQ(told(complete_map({{kA, 1}, {kB, 1}}, {{kA, kC}}, have({kB, kC}))), "A>C B>B");
    EXPECT_EQ(told(complete_map({{kB, 0}, {kA, 1}}, {{kA, kB}}, have({kA, kB}))), "A>B B>A") << "B gives way";
    EXPECT_EQ(told(complete_map({{kA, 1}, {kB, 0}}, {{kA, kB}}, have({kB}))), "A>B") << "there is no place for B";
    EXPECT_EQ(told(complete_map({{kA, 1}, {kB, 0}}, {{kB, kC}}, have({kA, kB, kC}))), "A>A B>C") << "as it is wished";
    EXPECT_EQ(told(complete_map({{kA, 1}, {kB, 0}}, {{kA, kC}, {kB, kC}}, have({kA, kB, kC}))), "A>C B>B");
    EXPECT_EQ(told(complete_map({{kA, 1}, {kB, 0}}, {{kA, kC}}, Answer())), "A>C B>B") << "nobody tells what is here";
}

TEST(CudaDeviceMap, NoTwoGoToOne) {
    const auto map = complete_map({{kA, 1}, {kB, 1}}, {{kA, kB}}, have({kA, kB}));
    ASSERT_EQ(map.blockers.size(), 1u);
    EXPECT_THAT(map.blockers[0].line(), HasSubstr(fmt::format("{}: would have to take what was on {} and on {}", kTwo, kOne, kTwo)));
    EXPECT_TRUE(complete_map({{kA, 1}, {kB, 1}}, {{kA, kB}, {kB, kA}}, have({kA, kB})).blockers.empty());
}

}  // namespace
}  // namespace checkpointd::cuda
