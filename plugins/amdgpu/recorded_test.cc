// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Images that CRIU's plugin has written (recorded_by_criu.txt), read, written and restored by ours.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/kfd_ioctl.h>
#include <fstream>
#include <map>
#include <sstream>

#include "core/base/io.h"
#include "plugins/amdgpu/emulated_host_test_util.h"

namespace checkpointd::amdgpu {
namespace {

constexpr uint32_t kKfdId = 18;
constexpr uint32_t kRenderIds[] = {19, 20};
constexpr pid_t kPid = 500;
const std::vector<std::string> kRecordedOn{"0x1001:128:64", "0x1002:129:64"};

// What the driver told of the program when it was recorded: of each GPU its buffers, in this order.
struct Recorded {
    uint64_t address;
    uint64_t size;
    uint32_t flags;
    bool is_mapped;
};
constexpr uint32_t kWritable = KFD_IOC_ALLOC_MEM_FLAGS_WRITABLE;
const std::vector<std::vector<Recorded>> kBuffers{
    {{0x7fb7630a7000, 8192, kWritable | KFD_IOC_ALLOC_MEM_FLAGS_VRAM, true},
     {0x7fb7630a5000, 8192,
      kWritable | KFD_IOC_ALLOC_MEM_FLAGS_VRAM | KFD_IOC_ALLOC_MEM_FLAGS_PUBLIC, true},
     {0x7fb7630a3000, 8192, kWritable | KFD_IOC_ALLOC_MEM_FLAGS_GTT, true},
     {0x7fb7630a2000, 4096, kWritable | KFD_IOC_ALLOC_MEM_FLAGS_GTT, false},
     {0x7fb7630a0000, 8192, kWritable | KFD_IOC_ALLOC_MEM_FLAGS_USERPTR, false},
     {0x7fb76309e000, 8192, kWritable | KFD_IOC_ALLOC_MEM_FLAGS_DOORBELL, false}},
    {{0x7fb762b9c000, 8192, kWritable | KFD_IOC_ALLOC_MEM_FLAGS_VRAM, true},
     {0x7fb762b9a000, 8192,
      kWritable | KFD_IOC_ALLOC_MEM_FLAGS_VRAM | KFD_IOC_ALLOC_MEM_FLAGS_PUBLIC, true},
     {0x7fb762b98000, 8192, kWritable | KFD_IOC_ALLOC_MEM_FLAGS_GTT, true},
     {0x7fb762b97000, 4096, kWritable | KFD_IOC_ALLOC_MEM_FLAGS_GTT, false},
     {0x7fb762b95000, 8192, kWritable | KFD_IOC_ALLOC_MEM_FLAGS_USERPTR, false},
     {0x7fb762b93000, 8192, kWritable | KFD_IOC_ALLOC_MEM_FLAGS_DOORBELL, false}}};

// What kfd-counter wrote into a buffer that GPUs count in: every 500 numbers four that are not
// zero.
std::string counted(uint32_t gpu_id, uint64_t size, uint64_t first = 0) {
    std::vector<uint64_t> numbers(size / 8);
    for (uint64_t i = 0; i < numbers.size(); ++i)
        if ((first + i) % 500 < 4)
            numbers[i] = gpu_id * 1000003ull + (first + i) * 7919;
    return {reinterpret_cast<const char*>(numbers.data()), size};
}

void put_line(const std::string& offset, const std::string& digits, std::string& contents) {
    size_t at = std::stoul(offset, nullptr, 16);
    ASSERT_LE(at + digits.size() / 2, contents.size());
    for (size_t i = 0; i + 1 < digits.size(); i += 2)
        contents[at++] = static_cast<char>(std::stoul(digits.substr(i, 2), nullptr, 16));
}

std::map<std::string, std::string> recorded_files() {
    std::map<std::string, std::string> files;
    std::string* current = nullptr;
    std::ifstream in(RECORDED_BY_CRIU);
    for (std::string line; std::getline(in, line);) {
        std::istringstream words(line);
        std::string first, second;
        size_t size = 0;
        words >> first >> second;
        if (first == "file" && words >> size)
            current = &(files[second] = std::string(size, '\0'));
        else if (first != "#" && current != nullptr)
            put_line(first, second, *current);
    }
    return files;
}

class RecordedByCriu : public testing::Test {
  protected:
    void SetUp() override {
        if (geteuid() != 0)
            GTEST_SKIP() << "needs root";
        ASSERT_EQ(files_.size(), 5u) << RECORDED_BY_CRIU;
        for (const auto& [name, contents] : files_)
            ASSERT_TRUE(write_file(dir_.fd(), name, contents));
    }
    static OpenImage opening(const images::TestDir& dir, int flags) {
        return
            [&dir, flags](const std::string& name) { return open_at(dir.fd(), name, flags, 0600); };
    }
    Result<void> restore(Host& there) {
        TestHost host(dir_);
        host.is_writing = false;
        there.as_worker();
        Restore job(host.raw(), *there.kfd, settings_);
        return restore_by(job, host, there, kPid, [&] {
            for (uint32_t id : kRenderIds)
                EXPECT_GE(job.restore_file(kPid, id), 0);
            return job.restore_file(kPid, kKfdId);
        });
    }
    static void expect_buffers(const kfd_emulation::Process& process) {
        ASSERT_EQ(process.devices.size(), kBuffers.size());
        for (size_t gpu = 0; gpu < kBuffers.size(); ++gpu) {
            ASSERT_EQ(process.devices[gpu].buffers.size(), kBuffers[gpu].size());
            auto expected = kBuffers[gpu].begin();
            for (const auto& [handle, buffer] : process.devices[gpu].buffers) {
                EXPECT_EQ(buffer.address, expected->address) << handle;
                EXPECT_EQ(buffer.size, expected->size) << handle;
                EXPECT_EQ(buffer.flags, expected->flags) << handle;
                EXPECT_EQ(buffer.mapped.count(gpu), expected->is_mapped ? 1u : 0u) << handle;
                ++expected;
            }
        }
    }
    static void expect_contents(const kfd_emulation::Process& process) {
        for (const auto& device : process.devices)
            for (const auto& [handle, buffer] : device.buffers) {
                if (!has_contents(buffer.flags))
                    continue;
                const std::string expected = handle <= 3 ? counted(device.user_id, buffer.size)
                                                         : std::string(buffer.size, '\0');
                EXPECT_TRUE(std::string(reinterpret_cast<const char*>(buffer.memory->data()),
                                        buffer.size) == expected)
                    << handle;
            }
    }

    const std::map<std::string, std::string> files_ = recorded_files();
    images::TestDir dir_;
    Settings settings_;
};

// All fields of all messages that a program has which leaves the render nodes to KFD.
TEST_F(RecordedByCriu, IsWrittenTheSameByUs) {
    images::TestDir ours;
    auto process = read_process(opening(dir_, O_RDONLY), kKfdId);
    ASSERT_TRUE(process && *process);
    ASSERT_TRUE(write_process(opening(ours, O_WRONLY | O_CREAT), kKfdId, **process));
    for (uint32_t id : kRenderIds) {
        auto node = read_render_node(opening(dir_, O_RDONLY), id);
        ASSERT_TRUE(node && *node);
        ASSERT_TRUE(write_render_node(opening(ours, O_WRONLY | O_CREAT), id, **node));
    }
    for (const auto& [name, contents] : files_) {
        if (name.find("pages") == std::string::npos) {
            EXPECT_TRUE(read_file(ours.fd(), name).value() == contents) << name;
        }
    }
}

TEST_F(RecordedByCriu, TellsOfItsMachineWhatWeTell) {
    auto process = read_process(opening(dir_, O_RDONLY), kKfdId);
    ASSERT_TRUE(process && *process);
    const images::TestDir folder;
    ASSERT_TRUE(kfd_emulation::write_topology(kfd_emulation::Machine::parse(kRecordedOn, 1).value(),
                                              folder.path()));
    const auto expected = read_topology(folder.path());
    ASSERT_TRUE(expected);
    pb::Process ours;
    put_topology(*expected, {{0x1001, 0x1001}, {0x1002, 0x1002}}, ours);
    ASSERT_EQ(ours.devices_size(), (*process)->devices_size());
    for (int i = 0; i < ours.devices_size(); ++i)
        EXPECT_EQ(ours.devices(i).SerializeAsString(), (*process)->devices(i).SerializeAsString())
            << "node " << i;
    EXPECT_EQ(topology_of(**process).by_gpu_id(0x1002)->drm_render_minor, 129u);
}

TEST_F(RecordedByCriu, IsRestoredByUs) {
    for (const auto& machine :
         {kRecordedOn, std::vector<std::string>{"0x2002:130:64", "0x2001:131:64"}}) {
        Host there(machine);
        auto result = restore(there);
        ASSERT_TRUE(result) << result.error().text();
        const auto process = there.process(kPid);
        EXPECT_EQ(process.evicted, 0u);
        EXPECT_FALSE(process.mmu_blocked);
        EXPECT_EQ(process.queues.size(), 2u);
        EXPECT_EQ(process.events.size(), 1u);
        expect_buffers(process);
        expect_contents(process);
    }
}

}  // namespace
}  // namespace checkpointd::amdgpu
