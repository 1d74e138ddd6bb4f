// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/amdgpu/images.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/kfd_ioctl.h>
#include <array>
#include <random>

#include "core/base/io.h"
#include "images/test_dir.h"
#include "plugins/amdgpu/topology_test_util.h"

namespace checkpointd::amdgpu {
namespace {

using testing::HasSubstr;

class Images : public testing::Test {
  protected:
    OpenImage writing() {
        return [this](const std::string& name) {
            return open_at(dir_.fd(), name, O_WRONLY | O_CREAT | O_EXCL, 0600);
        };
    }
    OpenImage reading() {
        return [this](const std::string& name) -> Result<ScopedFd> {
            auto file = open_at(dir_.fd(), name, O_RDONLY);
            if (!file && file.error().errno_code == ENOENT)
                return ScopedFd();
            return file;
        };
    }
    pb::Process sample() {
        pb::Process process;
        process.set_pid(12);
        const Topology here = machine(1, 2);
        put_topology(here, {{0x100, 0xaaaa}, {0x101, 0xbbbb}}, process);
        for (uint32_t gpu : {0xaaaau, 0xbbbbu}) {
            pb::Buffer& buffer = *process.add_buffers();
            buffer.set_addr(0x7f0000000000);
            buffer.set_size(4096);
            buffer.set_offset(0x100000000);
            buffer.set_alloc_flags(KFD_IOC_ALLOC_MEM_FLAGS_VRAM);
            buffer.set_gpu_id(gpu);
            buffer.set_handle(kNoHandle);
        }
        process.set_buffer_count(2);
        process.set_object_count(3);
        process.set_shared_memory_size(0);
        process.set_shared_memory_magic(0);
        process.set_private_data("kernel");
        return process;
    }
    Result<std::optional<pb::Process>> read_back(const pb::Process& process) {
        (void)unlinkat(dir_.fd(), kfd_image_name(5).c_str(), 0);
        CKPT_TRY(write_process(writing(), 5, process));
        return read_process(reading(), 5);
    }

    images::TestDir dir_;
};

TEST_F(Images, AreCalledAsCriusPluginCallsThem) {
    EXPECT_EQ(kfd_image_name(7), "amdgpu-kfd-7.img");
    EXPECT_EQ(render_image_name(7), "amdgpu-renderD-7.img");
    EXPECT_EQ(pages_image_name(7, 0xab), "amdgpu-pages-7-00ab.img");
}

TEST_F(Images, OfAProcessComeBack) {
    auto process = read_back(sample());
    ASSERT_TRUE(process) << process.error().text();
    ASSERT_TRUE(*process);
    EXPECT_EQ((*process)->SerializeAsString(), sample().SerializeAsString());
    const Topology topology = topology_of(**process);
    EXPECT_EQ(topology.gpu_count(), 2u);
    Node expected = machine(1, 2).nodes[1];
    expected.gpu_id = 0xaaaa;
    EXPECT_EQ(*topology.by_gpu_id(0xaaaa), expected);
    auto none = read_process(reading(), 6);
    ASSERT_TRUE(none);
    EXPECT_FALSE(*none);
}

// As written by CRIU's plugin: field numbers and types, and the eight bytes before them.
TEST_F(Images, HaveCriusBytes) {
    pb::RenderNode node;
    node.set_gpu_id(0x1234);
    node.set_id(9);
    node.set_drm_render_minor(128);
    node.set_buffer_count(0);
    ASSERT_TRUE(write_render_node(writing(), 9, node));
    const std::string bytes = read_file(dir_.fd(), "amdgpu-renderD-9.img").value();
    EXPECT_EQ(bytes, std::string("\x0a\0\0\0\0\0\0\0\x08\xb4\x24\x10\x09\x18\x80\x01\x20\x00", 18));
    auto read = read_render_node(reading(), 9);
    ASSERT_TRUE(read && *read);
    EXPECT_EQ((*read)->drm_render_minor(), 128u);

    pb::Buffer buffer;
    buffer.set_addr(1);
    buffer.set_size(2);
    buffer.set_offset(3);
    buffer.set_alloc_flags(4);
    buffer.set_gpu_id(5);
    buffer.set_handle(kNoHandle);
    EXPECT_EQ(buffer.SerializeAsString(),
              "\x08\x01\x10\x02\x18\x03\x20\x04\x28\x05\x30\xff\xff\xff\xff\x0f");
}

std::string varint(uint64_t value) {
    std::string bytes;
    for (; value > 0x7f; value >>= 7)
        bytes += static_cast<char>(value | 0x80);
    return bytes + static_cast<char>(value);
}

// Fields 1, 2, ... of a message have the values 1001, 1002, ...
template <typename Message, typename... Fields>
void expect_fields(Fields (Message::*... fields)() const) {
    std::string bytes;
    for (uint64_t number = 1; number <= sizeof...(fields); ++number)
        bytes += varint(number << 3) + varint(1000 + number);
    Message message;
    ASSERT_TRUE(message.ParseFromString(bytes));
    const std::vector<uint64_t> values{(message.*fields)()...};
    for (size_t i = 0; i < values.size(); ++i)
        EXPECT_EQ(values[i], 1001 + i);
    EXPECT_EQ(message.SerializeAsString(), bytes);
}

// All messages that there are; recorded_test.cc has what CRIU's plugin wrote.
TEST_F(Images, HaveFieldsInCriusOrder) {
    expect_fields<pb::Device>(
        &pb::Device::node_id, &pb::Device::gpu_id, &pb::Device::cpu_cores_count,
        &pb::Device::simd_count, &pb::Device::mem_banks_count, &pb::Device::caches_count,
        &pb::Device::io_links_count, &pb::Device::max_waves_per_simd, &pb::Device::lds_size_in_kb,
        &pb::Device::gds_size_in_kb, &pb::Device::num_gws, &pb::Device::wave_front_size,
        &pb::Device::array_count, &pb::Device::simd_arrays_per_engine,
        &pb::Device::cu_per_simd_array, &pb::Device::simd_per_cu, &pb::Device::max_slots_scratch_cu,
        &pb::Device::vendor_id, &pb::Device::device_id, &pb::Device::domain,
        &pb::Device::drm_render_minor, &pb::Device::hive_id, &pb::Device::num_sdma_engines,
        &pb::Device::num_sdma_xgmi_engines, &pb::Device::num_sdma_queues_per_engine,
        &pb::Device::num_cp_queues, &pb::Device::fw_version, &pb::Device::capability,
        &pb::Device::sdma_fw_version, &pb::Device::vram_public, &pb::Device::vram_size);
    expect_fields<pb::DeviceLink>(&pb::DeviceLink::type, &pb::DeviceLink::to_node);
    expect_fields<pb::Buffer>(&pb::Buffer::addr, &pb::Buffer::size, &pb::Buffer::offset,
                              &pb::Buffer::alloc_flags, &pb::Buffer::gpu_id, &pb::Buffer::handle);
    expect_fields<pb::BufferMapping>(&pb::BufferMapping::addr, &pb::BufferMapping::size,
                                     &pb::BufferMapping::offset, &pb::BufferMapping::flags);
    expect_fields<pb::RenderBuffer>(&pb::RenderBuffer::addr, &pb::RenderBuffer::size,
                                    &pb::RenderBuffer::offset, &pb::RenderBuffer::alloc_flags,
                                    &pb::RenderBuffer::alignment,
                                    &pb::RenderBuffer::preferred_domains, &pb::RenderBuffer::handle,
                                    &pb::RenderBuffer::is_import, &pb::RenderBuffer::mapping_count);
    expect_fields<pb::RenderNode>(&pb::RenderNode::gpu_id, &pb::RenderNode::id,
                                  &pb::RenderNode::drm_render_minor, &pb::RenderNode::buffer_count);

    const std::string device = "\x08\x01", buffer = "\x08\x02", node = "\x08\x03";  // not whole
    pb::Process process;
    ASSERT_TRUE(process.ParsePartialFromString("\x08\x01\x10\x02\x18\x03\x22\x02" + device +
                                               "\x28\x05\x32\x02" + buffer +
                                               "\x38\x07\x40\x08\x48\x09\x52\x03"
                                               "abc"));
    EXPECT_THAT(
        (std::array<uint64_t, 7>{process.pid(), process.gpu_count(), process.cpu_count(),
                                 process.buffer_count(), process.object_count(),
                                 process.shared_memory_size(), process.shared_memory_magic()}),
        testing::ElementsAre(1, 2, 3, 5, 7, 8, 9));
    EXPECT_EQ(process.private_data(), "abc");
    EXPECT_EQ(process.devices(0).node_id(), 1u);
    EXPECT_EQ(process.buffers(0).addr(), 2u);
    pb::Device linked;
    ASSERT_TRUE(linked.ParsePartialFromString("\x82\x02\x04\x08\x0b\x10\x01"));  // field 32
    EXPECT_EQ(linked.links(0).type(), 11u);
    pb::RenderBuffer render;
    ASSERT_TRUE(render.ParsePartialFromString("\x52\x02" + node));
    EXPECT_EQ(render.mappings(0).addr(), 3u);
    pb::RenderNode with_buffer;
    ASSERT_TRUE(with_buffer.ParsePartialFromString("\x2a\x02" + node));
    EXPECT_EQ(with_buffer.buffers(0).addr(), 3u);
}

TEST_F(Images, HiddenGpusAreLeftOut) {
    pb::Process process;
    Topology here = machine(1, 2);
    join(here, 1, 2, kXgmiLink);
    here.nodes[0].links.push_back({kPcieLink, 99});
    put_topology(here, {{0x101, 0x101}}, process);
    EXPECT_EQ(process.gpu_count(), 1u);
    EXPECT_EQ(process.cpu_count(), 1u);
    EXPECT_EQ(process.devices_size(), 2);
    EXPECT_EQ(process.devices(0).links_size(), 2);  // not the one that leads nowhere
}

TEST_F(Images, ThatContradictThemselvesAreRefused) {
    const std::pair<void (*)(pb::Process&), const char*> cases[] = {
        {[](pb::Process& process) { process.set_gpu_count(3); }, "other devices than it counts"},
        {[](pb::Process& process) { process.set_cpu_count(0); }, "other devices than it counts"},
        {[](pb::Process& process) { process.set_buffer_count(1); }, "other buffers than it counts"},
        {[](pb::Process& process) { process.mutable_buffers(0)->set_gpu_id(1); },
         "which it does not describe"},
        {[](pb::Process& process) { process.mutable_buffers(0)->set_size(0); },
         "buffer of 0 bytes"},
        {[](pb::Process& process) { process.mutable_buffers(0)->set_size(INT64_MAX); },
         "has a buffer of"},
        {[](pb::Process& process) { process.mutable_devices(1)->set_gpu_id(0xbbbb); }, "twice"},
        {[](pb::Process& process) { process.mutable_devices(1)->set_node_id(0); }, "twice"},
    };
    for (const auto& [spoil, expected] : cases) {
        pb::Process process = sample();
        spoil(process);
        auto read = read_back(process);
        ASSERT_FALSE(read) << expected;
        EXPECT_EQ(read.error().kind, ErrorKind::kBadImage);
        EXPECT_THAT(read.error().line(), HasSubstr(expected));
    }
}

TEST_F(Images, DamageIsFoundWhereverItIs) {
    ASSERT_TRUE(write_process(writing(), 5, sample()));
    const std::string good = read_file(dir_.fd(), kfd_image_name(5)).value();
    for (size_t size = 0; size < good.size(); ++size) {
        ASSERT_TRUE(write_file(dir_.fd(), kfd_image_name(5), good.substr(0, size)));
        EXPECT_FALSE(read_process(reading(), 5)) << size;
    }
    std::mt19937 random(1);
    for (int round = 0; round < 500;
         ++round) {  // must neither crash nor hang; many changes go unnoticed
        std::string bytes = good;
        bytes[random() % bytes.size()] = static_cast<char>(random());
        ASSERT_TRUE(write_file(dir_.fd(), kfd_image_name(5), bytes));
        (void)read_process(reading(), 5);
    }
}

TEST_F(Images, SizesOfPagesFilesAreChecked) {
    const std::string name = pages_image_name(1, 2);
    const ScopedFd file = open_at(dir_.fd(), name, O_RDWR | O_CREAT, 0600).value();
    ASSERT_TRUE(write_image_header(file.get(), name, 4096));
    EXPECT_FALSE(check_image_size(file.get(), name, 4096));
    ASSERT_EQ(ftruncate(file.get(), kImageHeader + 4096), 0);
    EXPECT_TRUE(check_image_size(file.get(), name, 4096));
    auto checked = check_image_size(file.get(), name, 8192);
    ASSERT_FALSE(checked);
    EXPECT_THAT(checked.error().line(),
                HasSubstr("should hold 8192 bytes of buffers, and holds 4096"));
}

}  // namespace
}  // namespace checkpointd::amdgpu
