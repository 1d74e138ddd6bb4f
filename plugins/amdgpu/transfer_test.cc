// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/amdgpu/transfer.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <cstring>
#include <random>

#include "plugins/amdgpu/engine_test_util.h"

namespace checkpointd::amdgpu {
namespace {

using testing::HasSubstr;

ScopedFd memory_file(const std::string& content) {
    ScopedFd fd(memfd_create("transfer", MFD_CLOEXEC));
    EXPECT_EQ(pwrite(fd.get(), content.data(), content.size(), 0),
              static_cast<ssize_t>(content.size()));
    return fd;
}

// Fills all pages of the file that a part is on, as a read past the page cache does.
ReadContent reader_of(const std::shared_ptr<const ScopedFd>& file) {
    return [file](uint64_t offset, uint64_t size, std::byte* room) -> Result<std::byte*> {
        const size_t lead = offset % 4096;
        const size_t whole = (lead + size + 4095) / 4096 * 4096;
        const ssize_t got = pread(file->get(), room, whole, static_cast<off_t>(offset - lead));
        if (got < static_cast<ssize_t>(lead + size))
            return fail(ErrorKind::kBadImage, "the file", "its contents end too early");
        std::memset(room + got, 0, whole - static_cast<size_t>(got));
        return room + lead;
    };
}

std::string random_bytes(size_t size, unsigned seed) {
    std::mt19937 random(seed);
    std::string bytes(size, 0);
    for (char& byte : bytes)
        byte = static_cast<char>(random());
    return bytes;
}

std::string content_of(int fd, size_t size, size_t offset = 0) {
    std::string content(size, 0);
    EXPECT_EQ(pread(fd, content.data(), size, static_cast<off_t>(offset)),
              static_cast<ssize_t>(size));
    return content;
}

class Transfer : public testing::Test {
  protected:
    static constexpr size_t kSizes[] = {4096, 3 * 65536 + 4096, 65536, 200 * 4096};
    static constexpr uint32_t kGpus = 2;
    static inline const std::string kHeader = "8 bytes.";  // no buffer begins at a page of the file

    void SetUp() override {
        options_.staging_bytes = kGpus * 4 * 65536;
        options_.gpu_count = kGpus;
        size_t total = 0;
        for (size_t size : kSizes)
            total += size;
        contents_ = random_bytes(total * kGpus, 7);
    }

    // Those that were left alone.
    void TearDown() override {
        for (uint32_t gpu = 0; gpu < kGpus; ++gpu)
            if (gpus_[gpu].engines > 0)
                delete engines_[gpu];
    }

    std::unique_ptr<TransferPipeline> pipeline(Direction direction) {
        return std::make_unique<TransferPipeline>(direction, options_, [this](uint32_t minor) {
            auto engine = std::make_unique<FakeEngine>(gpus_[minor - 128]);
            engines_[minor - 128] = engine.get();
            return Result<std::unique_ptr<CopyEngine>>(std::move(engine));
        });
    }
    // Buffers of both GPUs, in the order of the file.
    void add_all(TransferPipeline& pipeline, const std::shared_ptr<const ScopedFd>& file) {
        uint64_t at = kHeader.size();
        for (uint32_t gpu = 0; gpu < kGpus; ++gpu)
            for (size_t size : kSizes) {
                BufferTransfer transfer;
                transfer.dmabuf = ScopedFd(dup(buffers_[gpu].emplace_back(memory_file({})).get()));
                EXPECT_EQ(ftruncate(transfer.dmabuf.get(), static_cast<off_t>(size)), 0);
                transfer.file = file;
                transfer.read = reader_of(file);
                transfer.file_offset = at;
                transfer.size = size;
                transfer.name = fmt::format("buffer {} of GPU {}", buffers_[gpu].size(), gpu);
                transfer.on_done = [this] { ++done_; };
                pipeline.add(128 + gpu, std::move(transfer));
                at += size;
            }
    }
    std::string all_buffers() {
        std::string all;
        for (uint32_t gpu = 0; gpu < kGpus; ++gpu)
            for (size_t i = 0; i < std::size(kSizes); ++i)
                all += content_of(buffers_[gpu][i].get(), kSizes[i]);
        return all;
    }
    void expect_nothing_left() {
        for (FakeGpu& gpu : gpus_) {
            EXPECT_EQ(gpu.engines, 0);
            EXPECT_EQ(gpu.attached, 0);
        }
    }
    std::shared_ptr<const ScopedFd> file(const std::string& content) {
        return std::make_shared<const ScopedFd>(memory_file(kHeader + content));
    }
    Result<void> restore() {
        auto line = pipeline(Direction::kToDevice);
        add_all(*line, file(contents_));
        return line->finish();
    }

    TransferOptions options_;
    FakeGpu gpus_[kGpus];
    CopyEngine* engines_[kGpus] = {};  // the last ones
    std::vector<ScopedFd> buffers_[kGpus];
    std::string contents_;
    std::atomic<int> done_ = 0;
};

TEST_F(Transfer, FillsAllBuffersOfAllGpus) {
    std::atomic<uint64_t> last = 0;
    options_.progress = [&](uint64_t done, uint64_t total) {
        EXPECT_LE(done, total);
        last = std::max(last.load(), done);
    };
    auto result = restore();
    ASSERT_TRUE(result) << result.error().text();
    EXPECT_EQ(all_buffers(), contents_);
    EXPECT_EQ(last, contents_.size());
    EXPECT_EQ(done_, 8);
    expect_nothing_left();
}

TEST_F(Transfer, SavesAllBuffersOfAllGpus) {
    const auto out = file({});
    auto line = pipeline(Direction::kFromDevice);
    add_all(*line, out);  // of zeros
    ASSERT_TRUE(line->finish());
    EXPECT_EQ(content_of(out->get(), contents_.size(), kHeader.size()), std::string(contents_.size(), 0));

    auto again = pipeline(Direction::kFromDevice);
    uint64_t at = 0;
    for (uint32_t gpu = 0; gpu < kGpus; ++gpu)
        for (size_t i = 0; i < std::size(kSizes); at += kSizes[i++]) {
            ASSERT_EQ(pwrite(buffers_[gpu][i].get(), contents_.data() + at, kSizes[i], 0),
                      static_cast<ssize_t>(kSizes[i]));
            again->add(128 + gpu, {ScopedFd(dup(buffers_[gpu][i].get())), out, {},
                                   kHeader.size() + at, kSizes[i], "buffer", {}});
        }
    auto result = again->finish();
    ASSERT_TRUE(result) << result.error().text();
    EXPECT_EQ(content_of(out->get(), contents_.size(), kHeader.size()), contents_);
    expect_nothing_left();
}

TEST_F(Transfer, ReadsWhileTheEngineCopies) {
    for (FakeGpu& gpu : gpus_)
        gpu.bytes_per_second = 100e6;
    ASSERT_TRUE(restore());
    EXPECT_EQ(gpus_[0].most_under_way, 4);
    EXPECT_EQ(all_buffers(), contents_);
}

TEST_F(Transfer, OnePieceAloneOverlapsNothing) {
    options_.pieces = 1;
    ASSERT_TRUE(restore());
    EXPECT_EQ(gpus_[0].most_under_way, 1);
    EXPECT_EQ(all_buffers(), contents_);
}

TEST_F(Transfer, EveryFailureOfTheEngineIsTheEnd) {
    ASSERT_TRUE(restore());
    const int calls = gpus_[0].calls;
    ASSERT_GT(calls, 20);
    for (int at = 1; at <= calls; ++at) {
        for (FakeGpu& gpu : gpus_)
            gpu.calls = gpu.under_way = 0;
        for (auto& buffers : buffers_)
            buffers.clear();
        gpus_[0].fails_at = at;
        auto result = restore();
        ASSERT_FALSE(result) << "call " << at;
        EXPECT_THAT(result.error().text(), HasSubstr("was told to fail"));
        expect_nothing_left();
    }
}

TEST_F(Transfer, AFileThatIsTooShortIsNamed) {
    contents_.resize(contents_.size() - 1);
    auto result = restore();
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().kind, ErrorKind::kBadImage);
    EXPECT_THAT(result.error().line(), HasSubstr("buffer 4 of GPU 1"));
    expect_nothing_left();
}

TEST_F(Transfer, WhatCannotBeWrittenIsNamed) {
    auto line = pipeline(Direction::kFromDevice);
    add_all(*line, std::make_shared<const ScopedFd>(open("/dev/full", O_WRONLY | O_CLOEXEC)));
    auto result = line->finish();
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().errno_code, ENOSPC);
    expect_nothing_left();
}

TEST_F(Transfer, ACopyThatDoesNotEndTimesOut) {
    gpus_[1].hangs = true;
    options_.copy_timeout = std::chrono::milliseconds(20);
    auto result = restore();
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().kind, ErrorKind::kTimeout);
    EXPECT_THAT(result.error().line(), HasSubstr("buffer 1 of GPU 1"));
    ASSERT_EQ(gpus_[1].engines, 1);  // left alone: it may copy yet
    EXPECT_EQ(gpus_[0].engines, 0);
}

TEST_F(Transfer, AnEngineThatCannotBeOpenedIsTheEnd) {
    TransferPipeline line(Direction::kToDevice, options_,
                          [](uint32_t) -> Result<std::unique_ptr<CopyEngine>> {
                              return fail(ErrorKind::kUnsupported, "libdrm", "is not there");
                          });
    add_all(line, file(contents_));
    auto result = line.finish();
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().object, "libdrm");
}

TEST_F(Transfer, CancelAndDeadlineEndIt) {
    for (FakeGpu& gpu : gpus_)
        gpu.bytes_per_second = 1e6;
    const ScopedFd cancel(eventfd(1, EFD_CLOEXEC));
    options_.cancel_fd = cancel.get();
    auto result = restore();
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().kind, ErrorKind::kCancelled);
    options_.cancel_fd = -1;
    options_.deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(30);
    result = restore();
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().kind, ErrorKind::kTimeout);
}

// As a job that is cancelled, or fails elsewhere, makes it: amid the copies.
TEST_F(Transfer, AllLanesStopAmidTheirCopies) {
    for (FakeGpu& gpu : gpus_)
        gpu.bytes_per_second = 1e6;
    const ScopedFd cancel(eventfd(0, EFD_CLOEXEC));
    options_.cancel_fd = cancel.get();
    options_.staging_bytes = 1;
    std::atomic<uint64_t> most = 0;
    options_.progress = [&](uint64_t done, uint64_t) {
        most = std::max(most.load(), done);
        eventfd_write(cancel.get(), 1);
    };
    auto result = restore();
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().kind, ErrorKind::kCancelled);
    EXPECT_GT(most, 0u);
    EXPECT_LT(most, contents_.size() / 2);
    expect_nothing_left();
}

TEST_F(Transfer, LeavingWithoutFinishIsCancelling) {
    for (FakeGpu& gpu : gpus_)
        gpu.bytes_per_second = 1e6;
    {
        auto line = pipeline(Direction::kToDevice);
        add_all(*line, file(contents_));
    }
    expect_nothing_left();
}

TEST(PieceBytes, DividesTheMemory) {
    TransferOptions options;
    options.gpu_count = 2;
    EXPECT_EQ(piece_bytes(options), 2u << 20);
    options.gpu_count = 16;
    EXPECT_EQ(piece_bytes(options), 1u << 20);
    options.staging_bytes = 1;
    EXPECT_EQ(piece_bytes(options), 64u << 10);
    options.staging_bytes = 1ull << 40;
    EXPECT_EQ(piece_bytes(options), 2u << 20);
}

}  // namespace
}  // namespace checkpointd::amdgpu
