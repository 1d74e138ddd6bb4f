// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/amdgpu/settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <filesystem>

#include "core/base/io.h"
#include "images/test_dir.h"
#include "plugins/amdgpu/shared_memory.h"

namespace checkpointd::amdgpu {
namespace {

using testing::HasSubstr;

Result<Settings> read(const std::map<std::string, std::string>& given) {
    return Settings::read([&](const char* name) {
        auto found = given.find(name);
        return found == given.end() ? nullptr : found->second.c_str();
    });
}

TEST(Settings, AreThoseOfTheManualWhereNothingIsSaid) {
    const Settings settings = read({}).value();
    EXPECT_TRUE(settings.is_parallel && settings.checks_memory);
    EXPECT_EQ(settings.staging_bytes, 64u << 20);
    EXPECT_EQ(settings.copy_timeout, std::chrono::seconds(30));
    EXPECT_TRUE(settings.rules.numa && settings.rules.firmware && settings.rules.wanted.empty());
}

TEST(Settings, AreRead) {
    const Settings settings = read({{"parallel", "no"},
                                    {"staging-memory", "3G"},
                                    {"copy-timeout", "1min"},
                                    {"check-memory", "no"},
                                    {"device-map", "0x1f=0x2F,12=13"},
                                    {"numa-check", "no"},
                                    {"vram-size-check", "no"}})
                                  .value();
    EXPECT_FALSE(settings.is_parallel || settings.rules.numa || settings.rules.vram_size ||
                 settings.checks_memory);
    EXPECT_EQ(settings.staging_bytes, 3ull << 30);
    EXPECT_EQ(settings.copy_timeout, std::chrono::minutes(1));
    EXPECT_EQ(settings.rules.wanted, (std::map<uint32_t, uint32_t>{{0x1f, 0x2f}, {12, 13}}));
}

TEST(Settings, AllThatIsWrongComesAtOnce) {
    auto settings = read(
        {{"parallel", "perhaps"}, {"staging-memory", "1T"}, {"device-map", "0x1=0x2,0x1=0x3"}});
    ASSERT_FALSE(settings);
    EXPECT_EQ(settings.error().causes.size(), 3u);
    EXPECT_THAT(settings.error().text(),
                HasSubstr("plugins.amdgpu.parallel: cannot be 'perhaps' (allowed: yes, no)"));
    for (const char* bad : {"", "0", "M", "1m", "65G", "99999999999999999999", "1MM", "-1"})
        EXPECT_FALSE(read({{"staging-memory", bad}})) << bad;
    for (const char* bad : {"1", "1=", "=1", "0x=1", "1=2=3", "0=1", "GPU-1=GPU-2"})
        EXPECT_FALSE(read({{"device-map", bad}})) << bad;
    for (const char* bad : {"0s", "-1s", "8d", "soon"})
        EXPECT_FALSE(read({{"copy-timeout", bad}})) << bad;
}

TEST(SharedMemory, ComesBackWhereItIsMissing) {
    const images::TestDir dir;
    EXPECT_EQ(read_shared_memory(dir.path()).value().size, 0u);
    ASSERT_TRUE(make_shared_memory({}, dir.path()));
    EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
    ASSERT_TRUE(make_shared_memory({4096, 0x12345678}, dir.path()));
    const SharedMemory made = read_shared_memory(dir.path()).value();
    EXPECT_EQ(made.size, 4096u);
    EXPECT_EQ(made.magic, 0x12345678u);
    struct stat status {};
    ASSERT_EQ(stat((dir.path() + "/sem.hsakmt_semaphore").c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777, 0666u);
    EXPECT_EQ(status.st_size, 32);  // sizeof(sem_t)
    // What is there is of others, and stays.
    ASSERT_TRUE(make_shared_memory({8192, 1}, dir.path()));
    EXPECT_EQ(read_shared_memory(dir.path()).value().magic, 0x12345678u);
    EXPECT_FALSE(make_shared_memory({1, 1}, dir.path()));
}

}  // namespace
}  // namespace checkpointd::amdgpu
