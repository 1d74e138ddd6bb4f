// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/restore_preflight.h"

#include <fstream>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "plugins/cuda/devices_image.h"
#include "plugins/cuda/one_process_test_util.h"
#include "plugins/cuda/storage_image.h"
#include "plugins/host/host_test_util.h"

namespace checkpointd::cuda {
namespace {

using testing::HasSubstr;

class CudaRestorePreflight : public testing::Test {
  protected:
    CudaRestorePreflight() { host_.is_writing = false; }
    void write(const std::string& name, const std::string& content) { std::ofstream(dir_.path() + "/" + name) << content; }
    // Of two processes that had so much on the first device.
    void write_image(uint64_t bytes, std::vector<std::string> storages = {}) {
        write(kDevicesImage, to_json({2, two_devices(), std::move(storages), {{*parse_uuid(kOne), bytes, 0}}, {}}));
    }
    Result<RestoreFacts> check() { return check_restore(driver_, settings_, host_.raw(), kDeadline); }

    images::TestDir dir_;
    TestHost host_{dir_};
    OneProcess driver_;
    Settings settings_;
};

TEST_F(CudaRestorePreflight, AnImageWithoutAListAsksForNothing) {
    auto facts = check();
    ASSERT_TRUE(facts) << facts.error().text();
    EXPECT_EQ(facts->processes, 0u);
    EXPECT_TRUE(driver_.asked.empty());
    write(kDevicesImage, "{");
    EXPECT_EQ(check().error().kind, ErrorKind::kBadImage);
}

TEST_F(CudaRestorePreflight, RoomIsLookedForWhereItWillBeNeeded) {
    write_image(10ull << 30);
    auto facts = check();
    ASSERT_TRUE(facts) << facts.error().text();
    EXPECT_EQ(facts->processes, 2u);
    settings_.device_map = {{*parse_uuid(kOne), *parse_uuid(kTwo)}};
    EXPECT_FALSE(check()) << "5 GiB are free there";
    driver_.devices.device_count = 0;
    EXPECT_TRUE(check()) << "nobody tells of devices";
    driver_.devices.value = kBaseVersion;
    EXPECT_THAT(check().error().text(), HasSubstr("whether there is memory enough was not looked at"));
}

TEST_F(CudaRestorePreflight, AMapIsForADriverThatKnowsIt) {
    settings_.device_map = {{*parse_uuid(kOne), *parse_uuid(kTwo)}};
    driver_.devices.value = kBaseVersion;
    const char* told = "is of CUDA 12.8, and puts nothing on another device";
    EXPECT_THAT(check().error().line(), HasSubstr(told)) << "an image without a list";
    write_image(1);
    EXPECT_THAT(check().error().line(), HasSubstr(told));
    driver_.devices.value = kPairsVersion;
    auto facts = check();
    ASSERT_TRUE(facts) << facts.error().text();
    ASSERT_EQ(facts->pairs.size(), 2u) << "the driver wants all of them";
    EXPECT_EQ(facts->pairs[1].from, *parse_uuid(kTwo));
    driver_.devices.value = kBaseVersion;
    settings_.device_map = {{*parse_uuid(kOne), *parse_uuid(kOne)}};
    EXPECT_TRUE(check()) << "it needs none";
    driver_.devices.value = kPairsVersion;
    settings_.device_map = {{*parse_uuid(kOne), *parse_uuid(kTwo)}};
    write(kDevicesImage, to_json({2, {}, {}, {}, {}}));
    EXPECT_EQ(check()->pairs.size(), 1u) << "an image that does not say which devices there were";
}

TEST_F(CudaRestorePreflight, AllThatIsInTheWayIsToldAtOnce) {
    write_image(100ull << 30, {"gpu-cs-7.img", "gpu-cs-8.img"});
    driver_.devices.value = kBaseVersion;
    driver_.devices.offers_storage = 0;
    settings_.device_map = {{*parse_uuid(kOne), *parse_uuid(kTwo)}};
    auto facts = check();
    ASSERT_FALSE(facts);
    for (const char* told : {"gpu-cs-7.img", "gpu-cs-8.img", "takes device memory from nobody", "puts nothing on another device",
                             "has 5120 MiB free of the"})
        EXPECT_THAT(facts.error().text(), HasSubstr(told));
    driver_.devices.code = kNotInitialized;
    EXPECT_THAT(check().error().text(), testing::AllOf(HasSubstr("cannot checkpoint processes"), HasSubstr("gpu-cs-8.img")));
}

TEST_F(CudaRestorePreflight, FilesOfDeviceMemoryAreOpenedWhole) {
    std::vector<Region> regions{{*parse_uuid(kOne), 4096, 0}};
    place_regions(regions);
    write_image(4096, {"gpu-cs-7.img"});
    EXPECT_THAT(check().error().line(), HasSubstr("gpu-cs-7.img"));
    write("gpu-cs-7.img", storage_header(regions));
    EXPECT_FALSE(check()) << "it ends with its header";
    write("gpu-cs-7.img", storage_header(regions) + std::string(4096, 'x'));
    auto facts = check();
    ASSERT_TRUE(facts) << facts.error().text();
    EXPECT_EQ(facts->storages.size(), 1u);
    driver_.devices.offers_storage = 0;
    EXPECT_THAT(check().error().line(), HasSubstr("is of CUDA 13.4, and takes device memory from nobody"));
}

}  // namespace
}  // namespace checkpointd::cuda
