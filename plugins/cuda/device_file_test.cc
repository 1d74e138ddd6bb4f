// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/device_file.h"

#include <filesystem>
#include <gtest/gtest.h>

#include "plugins/cuda/kept_file.h"
#include "plugins/cuda/one_process_test_util.h"
#include "plugins/cuda/storage_image.h"
#include "plugins/host/host_test_util.h"

namespace checkpointd::cuda {
namespace {

TEST(CudaDeviceFile, IsFoundAgainForTheDeviceThatIsHere) {
    images::TestDir dir;
    TestHost host(dir);
    auto made = DeviceFile::create(host.raw(), getpid(), {{*parse_uuid(kOne), 5000, 0}});
    ASSERT_TRUE(made) << made.error().text();
    EXPECT_TRUE(std::filesystem::exists(made->kept()));
    EXPECT_EQ(made->image().regions[0].offset, kStorageHeader);
    ASSERT_EQ(ftruncate(made->image().fd, 3 * 4096), 0);
    host.is_writing = false;
    const std::vector<GpuPair> map{{*parse_uuid(kOne), *parse_uuid(kTwo)}, {*parse_uuid(kTwo), *parse_uuid(kOne)}};
    EXPECT_FALSE(made->is_whole());
    EXPECT_FALSE(DeviceFile::open(host.raw(), getpid(), map)) << "it has no header yet";
    ASSERT_TRUE(made->end());
    EXPECT_TRUE(made->is_whole());
    auto found = DeviceFile::open(host.raw(), getpid(), map);
    ASSERT_TRUE(found) << found.error().text();
    ASSERT_TRUE(*found);
    EXPECT_TRUE((*found)->is_whole());
    EXPECT_EQ((*found)->image().regions[0].uuid, *parse_uuid(kTwo));
    drop_kept(made->kept());
    EXPECT_FALSE(std::filesystem::exists(made->kept()));
}

TEST(CudaDeviceFile, OfAProcessWithoutOneThereIsNone) {
    images::TestDir dir;
    TestHost host(dir);
    host.is_writing = false;
    auto none = DeviceFile::open(host.raw(), getpid(), {});
    ASSERT_TRUE(none) << none.error().text();
    EXPECT_FALSE(*none);
}

}  // namespace
}  // namespace checkpointd::cuda
