// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The engine on a made-up libdrm_amdgpu, whose GPU executes the commands that it is given.
#include "plugins/amdgpu/drm_engine.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <cstring>
#include <memory>
#include <set>

#include "plugins/amdgpu/sdma.h"

namespace checkpointd::amdgpu {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint32_t kVega = 141;
constexpr uint32_t kPolaris = 130;

TEST(Sdma, OnePacket) {
    EXPECT_THAT(sdma_copy(0x123456789000, 0xabc000, 0x1000, kPolaris),
                ElementsAre(1, 0x1000, 0, 0x56789000, 0x1234, 0xabc000, 0, 0));
}

TEST(Sdma, NewerFamiliesCountFromZero) {
    EXPECT_THAT(sdma_copy(0x123456789000, 0xabc000, 0x1000, kVega),
                ElementsAre(1, 0xfff, 0, 0x56789000, 0x1234, 0xabc000, 0, 0));
}

TEST(Sdma, MoreThanOnePacketTakes) {
    EXPECT_THAT(sdma_copy(0xffe00000, 0x2000000000, (1 << 21) + 4096, kVega),
                ElementsAre(1, 0x1fffff, 0, 0xffe00000, 0, 0, 0x20,  //
                            1, 0xfff, 0, 0, 1, 0x200000, 0x20,       //
                            0, 0));
    EXPECT_EQ(sdma_copy(0, 0, 8ull << 21, kVega).size(), 56u);
    EXPECT_EQ(sdma_copy(0, 0, 8ull << 21, kPolaris).size(), 64u);
}

TEST(DrmApi, SaysWhatIsMissing) {
    auto none = drm::load_api("libno-such-library.so.1");
    ASSERT_FALSE(none);
    EXPECT_EQ(none.error().kind, ErrorKind::kUnsupported);
    auto other = drm::load_api("libc.so.6");
    ASSERT_FALSE(other);
    EXPECT_THAT(other.error().line(),
                HasSubstr("lacks amdgpu_device_initialize, amdgpu_device_deinitialize"));
}

// The library's objects are this one's, counted. Functions of C have nowhere to carry it.
struct FakeDrm {
    struct Memory {
        std::byte* data = nullptr;
        uint64_t size = 0;
        bool is_own = false;
    };
    std::map<uint64_t, Memory*> mapped;  // by address
    std::set<void*> alive;
    uint64_t next_address = 1u << 21;
    uint64_t submitted = 0;
    int calls = 0;
    int fails_at = 0;
    bool hangs = false;
    uint32_t family = kVega;
    std::set<uint64_t> listed;
};

FakeDrm* fake = nullptr;

int called() {
    return ++fake->calls == fake->fails_at ? -EIO : 0;
}

template <typename Handle, typename Object>
Handle made(Object* object) {
    fake->alive.insert(object);
    return reinterpret_cast<Handle>(object);
}

template <typename Object, typename Handle>
int unmade(Handle handle) {
    EXPECT_EQ(fake->alive.erase(handle), 1u);
    delete reinterpret_cast<Object*>(handle);
    return called();
}

FakeDrm::Memory* memory(drm::Buffer buffer) {
    return reinterpret_cast<FakeDrm::Memory*>(buffer);
}

std::byte* at(uint64_t address, uint64_t size) {
    auto found = fake->mapped.upper_bound(address);
    EXPECT_NE(found, fake->mapped.begin());
    --found;
    EXPECT_LE(address + size, found->first + found->second->size);
    return found->second->data + (address - found->first);
}

void execute(const drm::Commands& commands) {
    std::vector<uint32_t> words(commands.words);
    std::memcpy(words.data(), at(commands.gpu_address, commands.words * 4), commands.words * 4);
    EXPECT_EQ(words.size() % 8, 0u);
    for (size_t i = 0; i < words.size();) {
        if (words[i] == 0) {
            ++i;
            continue;
        }
        ASSERT_EQ(words[i], 1u);
        auto address = [&](size_t low) {
            return words[low] | static_cast<uint64_t>(words[low + 1]) << 32;
        };
        const uint32_t bytes = words[i + 1] + (fake->family >= kVega ? 1 : 0);
        std::memcpy(at(address(i + 5), bytes), at(address(i + 3), bytes), bytes);
        i += 7;
    }
}

void fake_buffers(drm::Api& api) {
    api.create_bo_from_user_mem = [](drm::Device, void* data, uint64_t size, drm::Buffer* out) {
        if (int code = called())
            return code;
        *out = made<drm::Buffer>(new FakeDrm::Memory{static_cast<std::byte*>(data), size, false});
        return 0;
    };
    api.bo_import = [](drm::Device, uint32_t kind, uint32_t fd, drm::ImportResult* out) {
        EXPECT_EQ(kind, drm::kImportDmaBuf);
        if (int code = called())
            return code;
        const auto size = static_cast<uint64_t>(lseek(static_cast<int>(fd), 0, SEEK_END));
        void* data =
            mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, static_cast<int>(fd), 0);
        *out = {made<drm::Buffer>(new FakeDrm::Memory{static_cast<std::byte*>(data), size, true}),
                size};
        return 0;
    };
    api.bo_alloc = [](drm::Device, drm::AllocRequest* request, drm::Buffer* out) {
        if (int code = called())
            return code;
        void* data = mmap(nullptr, request->size, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        *out = made<drm::Buffer>(
            new FakeDrm::Memory{static_cast<std::byte*>(data), request->size, true});
        return 0;
    };
    api.bo_free = [](drm::Buffer buffer) {
        if (memory(buffer)->is_own)
            munmap(memory(buffer)->data, memory(buffer)->size);
        return unmade<FakeDrm::Memory>(buffer);
    };
    api.bo_cpu_map = [](drm::Buffer buffer, void** out) {
        *out = memory(buffer)->data;
        return called();
    };
    api.bo_cpu_unmap = [](drm::Buffer) { return called(); };
}

void fake_addresses(drm::Api& api) {
    api.va_range_alloc = [](drm::Device, uint32_t, uint64_t size, uint64_t alignment, uint64_t,
                            uint64_t* address, drm::Range* out, uint64_t) {
        if (int code = called())
            return code;
        *address = (fake->next_address + alignment - 1) / alignment * alignment;
        fake->next_address = *address + size;
        *out = made<drm::Range>(new int);
        return 0;
    };
    api.va_range_free = [](drm::Range range) { return unmade<int>(range); };
    api.bo_va_op = [](drm::Buffer buffer, uint64_t, uint64_t, uint64_t address, uint64_t,
                      uint32_t operation) {
        if (operation == drm::kUnmap) {
            EXPECT_EQ(fake->mapped.erase(address), 1u);
        }
        if (int code = called())
            return code;
        if (operation == drm::kMap)
            fake->mapped[address] = memory(buffer);
        return 0;
    };
    api.bo_list_create = [](drm::Device, uint32_t count, drm::Buffer*, uint8_t*, drm::List* out) {
        EXPECT_EQ(count, 3u);
        if (int code = called())
            return code;
        *out = made<drm::List>(new int);
        return 0;
    };
    api.bo_list_destroy = [](drm::List list) { return unmade<int>(list); };
}

void fake_commands(drm::Api& api) {
    api.cs_ctx_create = [](drm::Device, drm::Context* out) {
        if (int code = called())
            return code;
        *out = made<drm::Context>(new int);
        return 0;
    };
    api.cs_ctx_free = [](drm::Context context) { return unmade<int>(context); };
    api.cs_submit = [](drm::Context, uint64_t, drm::Request* request, uint32_t count) {
        EXPECT_EQ(count, 1u);
        EXPECT_EQ(request->ip_type, drm::kCopyEngine);
        EXPECT_TRUE(fake->alive.contains(request->buffers));
        if (int code = called())
            return code;
        execute(*request->commands);
        request->number = 100 + ++fake->submitted;
        return 0;
    };
    api.cs_query_fence_status = [](drm::Fence* fence, uint64_t, uint64_t, uint32_t* has_ended) {
        EXPECT_LE(fence->number, 100 + fake->submitted);
        *has_ended = fake->hangs ? 0 : 1;
        return called();
    };
}

drm::Api fake_api() {
    drm::Api api{};
    api.device_initialize = [](int, uint32_t*, uint32_t*, drm::Device* out) {
        if (int code = called())
            return code;
        *out = made<drm::Device>(new int);
        return 0;
    };
    api.device_deinitialize = [](drm::Device device) { return unmade<int>(device); };
    api.query_gpu_info = [](drm::Device, drm::GpuInfo* info) {
        info->family_id = fake->family;
        return called();
    };
    fake_buffers(api);
    fake_addresses(api);
    fake_commands(api);
    return api;
}

class DrmEngineTest : public testing::Test {
  protected:
    static constexpr uint64_t kSize = 5u << 20;

    void SetUp() override {
        fake = &drm_;
        host_ = static_cast<std::byte*>(
            mmap(nullptr, 2 * kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        for (uint64_t i = 0; i < 2 * kSize; ++i)
            host_[i] = static_cast<std::byte>(i * 2654435761u >> 13);
        dmabuf_ = ScopedFd(memfd_create("vram", MFD_CLOEXEC));
        ASSERT_EQ(ftruncate(dmabuf_.get(), kSize), 0);
    }
    void TearDown() override {
        munmap(host_, 2 * kSize);
        EXPECT_TRUE(drm_.alive.empty());
        EXPECT_TRUE(drm_.mapped.empty());
        fake = nullptr;
    }
    // In and out again, by way of the device.
    Result<void> there_and_back() {
        CKPT_ASSIGN(auto engine,
                    DrmEngine::open(fake_api(), ScopedFd(open("/dev/null", O_RDWR | O_CLOEXEC))));
        CKPT_TRY(engine->pin(host_, 2 * kSize));
        CKPT_ASSIGN(const uint64_t buffer, engine->attach(dmabuf_.get(), kSize));
        CKPT_ASSIGN(const uint64_t in,
                    engine->start({Direction::kToDevice, buffer, 0, host_, kSize}));
        CKPT_ASSIGN(const uint64_t out, engine->start({Direction::kFromDevice, buffer, 4096,
                                                       host_ + kSize, kSize - 4096}));
        CKPT_TRY(engine->wait(in, CopyEngine::Deadline::max()));
        CKPT_TRY(engine->wait(out, CopyEngine::Deadline::clock::now() + std::chrono::seconds(1)));
        return engine->detach(buffer);
    }

    FakeDrm drm_;
    std::byte* host_ = nullptr;
    ScopedFd dmabuf_;
};

TEST_F(DrmEngineTest, CopiesBothWays) {
    for (uint32_t family : {kVega, kPolaris}) {
        drm_.family = family;
        auto result = there_and_back();
        ASSERT_TRUE(result) << result.error().text();
        EXPECT_EQ(std::memcmp(host_ + kSize, host_ + 4096, kSize - 4096), 0);
        std::vector<std::byte> vram(kSize);
        ASSERT_EQ(pread(dmabuf_.get(), vram.data(), kSize, 0), static_cast<ssize_t>(kSize));
        EXPECT_EQ(std::memcmp(vram.data(), host_, kSize), 0);
        std::memset(host_ + kSize, 0, kSize);
    }
}

// The reference lost failures of the copy behind those of cleaning up. Ours must tell of each.
TEST_F(DrmEngineTest, EveryFailureIsTold) {
    ASSERT_TRUE(there_and_back());
    const int calls = drm_.calls;
    int told = 0;
    for (int i = 1; i <= calls; ++i) {
        drm_.calls = 0;
        drm_.fails_at = i;
        auto result = there_and_back();
        if (!result) {
            EXPECT_EQ(result.error().errno_code, EIO);
            ++told;
        }
        EXPECT_TRUE(drm_.alive.empty()) << i;
    }
    // The destructor has nobody to tell: staging memory, commands, context, device.
    EXPECT_EQ(calls - told, 9);
}

TEST_F(DrmEngineTest, AHangIsATimeout) {
    auto engine =
        DrmEngine::open(fake_api(), ScopedFd(open("/dev/null", O_RDWR | O_CLOEXEC))).value();
    ASSERT_TRUE(engine->pin(host_, kSize));
    const uint64_t buffer = engine->attach(dmabuf_.get(), kSize).value();
    const uint64_t fence = engine->start({Direction::kToDevice, buffer, 0, host_, 4096}).value();
    drm_.hangs = true;
    auto waited = engine->wait(fence, CopyEngine::Deadline::clock::now());
    ASSERT_FALSE(waited);
    EXPECT_EQ(waited.error().kind, ErrorKind::kTimeout);
    drm_.hangs = false;
    EXPECT_TRUE(engine->wait(fence, CopyEngine::Deadline::max()));
    EXPECT_TRUE(engine->wait(fence, CopyEngine::Deadline::max()));  // once is enough
}

TEST_F(DrmEngineTest, NothingBeyondTheEnds) {
    auto engine =
        DrmEngine::open(fake_api(), ScopedFd(open("/dev/null", O_RDWR | O_CLOEXEC))).value();
    ASSERT_TRUE(engine->pin(host_, kSize));
    EXPECT_FALSE(engine->pin(host_, kSize));
    EXPECT_FALSE(engine->attach(dmabuf_.get(), kSize + 4096));
    const uint64_t buffer = engine->attach(dmabuf_.get(), kSize).value();
    EXPECT_FALSE(engine->start({Direction::kToDevice, buffer, 4096, host_, kSize}));
    EXPECT_FALSE(engine->start({Direction::kToDevice, buffer, UINT64_MAX, host_, 4096}));
    EXPECT_FALSE(engine->start({Direction::kToDevice, buffer, 0, host_ + 4096, kSize}));
    EXPECT_FALSE(engine->start({Direction::kToDevice, buffer + 9, 0, host_, 4096}));
    EXPECT_FALSE(engine->detach(buffer + 9));
    for (int i = 0; i < 16; ++i)
        ASSERT_TRUE(engine->start({Direction::kToDevice, buffer, 0, host_, 4096}));
    EXPECT_FALSE(engine->start({Direction::kToDevice, buffer, 0, host_, 4096}));
}

}  // namespace
}  // namespace checkpointd::amdgpu
