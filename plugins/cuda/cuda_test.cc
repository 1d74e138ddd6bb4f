// SPDX-License-Identifier: LGPL-2.1-or-later
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <map>

#include "plugins/cuda/devices_image.h"
#include "plugins/cuda/settings.h"

namespace checkpointd::cuda {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

constexpr const char* kOne = "GPU-00112233-4455-6677-8899-aabbccddeeff";
constexpr const char* kTwo = "GPU-ffeeddcc-bbaa-9988-7766-554433221100";

Result<Settings> read(std::map<std::string, std::string> texts) {
    return Settings::read([&](const char* name) {
        auto found = texts.find(name);
        return found == texts.end() ? nullptr : found->second.c_str();
    });
}

TEST(CudaSettings, AreRead) {
    auto none = read({});
    ASSERT_TRUE(none);
    EXPECT_FALSE(none->by_command);
    EXPECT_EQ(none->on_timeout, OnTimeout::kResume);
    auto all = read({{"backend", "command"}, {"command", "/opt/cc"}, {"lock-timeout", "1.5s"},
                     {"checkpoint-timeout", "2min"}, {"on-timeout", "leave"}, {"check-memory", "no"},
                     {"device-map", fmt::format("{}={},{}={}", kOne, kTwo, kTwo, kOne)}});
    ASSERT_TRUE(all) << all.error().text();
    EXPECT_TRUE(all->by_command);
    EXPECT_EQ(all->command, "/opt/cc");
    EXPECT_EQ(all->lock_timeout, milliseconds(1500));
    EXPECT_EQ(all->checkpoint_timeout, milliseconds(120000));
    EXPECT_EQ(all->on_timeout, OnTimeout::kLeave);
    EXPECT_FALSE(all->checks_memory);
    ASSERT_EQ(all->device_map.size(), 2u);
    EXPECT_EQ(to_string(all->device_map[1].from), kTwo);
    EXPECT_EQ(to_string(all->device_map[1].to), kOne);
}

TEST(CudaSettings, AllThatIsWrongIsToldAtOnce) {
    auto wrong = read({{"backend", "magic"}, {"lock-timeout", "soon"}, {"checkpoint-timeout", "0"},
                       {"on-timeout", "panic"}, {"check-memory", "maybe"}, {"device-map", "GPU-1=GPU-2"}});
    ASSERT_FALSE(wrong);
    EXPECT_EQ(wrong.error().kind, ErrorKind::kBadInput);
    EXPECT_EQ(wrong.error().causes.size(), 6u) << wrong.error().text();
    EXPECT_THAT(wrong.error().text(), HasSubstr("allowed: command, driver-api"));
}

TEST(CudaSettings, OfUuidsOnlyWholeOnesAreTaken) {
    for (const char* bad : {"", "GPU-", "GPU-00112233-4455-6677-8899-aabbccddeef", "00112233-4455-6677-8899-aabbccddeeff",
                            "GPU-0011223g-4455-6677-8899-aabbccddeeff", "MIG-00112233-4455-6677-8899-aabbccddeeff"})
        EXPECT_FALSE(parse_uuid(bad)) << bad;
    EXPECT_EQ(to_string(*parse_uuid(kOne)), kOne);
}

// One device that was used and one that was not.
DevicesImage image() {
    DevicesImage image{3, {}, {}};
    image.before.device_count = image.after.device_count = 2;
    image.before.devices[0] = {*parse_uuid(kOne), 80ull << 30, 10ull << 30};
    image.before.devices[1] = {*parse_uuid(kTwo), 80ull << 30, 5ull << 30};
    image.after = image.before;
    image.after.devices[0].free_bytes = 40ull << 30;
    return image;
}

TEST(CudaDevices, TheImageSaysWhatWasTakenOff) {
    auto wanted = parse_devices(to_json(image()));
    ASSERT_TRUE(wanted) << wanted.error().text();
    EXPECT_EQ(wanted->processes, 3u);
    ASSERT_EQ(wanted->devices.size(), 2u);
    EXPECT_EQ(wanted->devices[0].bytes, 30ull << 30);
    EXPECT_EQ(wanted->devices[1].bytes, 0u);
    for (const char* bad : {"", "[]", "{}", "{\"processes\": 1}", "{\"processes\": 1, \"devices\": [{\"uuid\": \"x\"}]}"})
        EXPECT_FALSE(parse_devices(bad)) << bad;
}

TEST(CudaDevices, WhatIsMissingIsNamed) {
    const auto wanted = parse_devices(to_json(image()))->devices;
    Answer here;
    auto missing = check_devices(wanted, here, {});
    ASSERT_FALSE(missing);
    EXPECT_THAT(missing.error().line(), HasSubstr(std::string(kOne) + ": is not here"));
    here = image().after;
    EXPECT_TRUE(check_devices(wanted, here, {})) << "the one that was not used may be full";
    EXPECT_FALSE(check_devices(wanted, here, {{*parse_uuid(kOne), *parse_uuid(kTwo)}})) << "5 GiB are free there";
    here.devices[1].free_bytes = 30ull << 30;
    EXPECT_TRUE(check_devices(wanted, here, {{*parse_uuid(kOne), *parse_uuid(kTwo)}}));
}

}  // namespace
}  // namespace checkpointd::cuda
