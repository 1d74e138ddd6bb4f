// SPDX-License-Identifier: LGPL-2.1-or-later
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/io.h"
#include "core/memory/page_images.h"
#include "images/constants.h"
#include "images/proto/memory.pb.h"

namespace checkpointd {
namespace {

using images::ImageDir;
using images::ImageType;

class TemporaryDir {
  public:
    TemporaryDir() { EXPECT_NE(mkdtemp(path_), nullptr); }
    ~TemporaryDir() { std::filesystem::remove_all(path_); }
    const char* path() const { return path_; }

  private:
    char path_[32] = "/tmp/memory_test.XXXXXX";
};

// A child that owns a mapping of known content: page N is filled with the byte N % 251.
class Victim {
  public:
    explicit Victim(size_t pages) : pages_(pages) {
        base_ = static_cast<char*>(mmap(nullptr, pages * kPageSize, PROT_READ | PROT_WRITE,
                                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        int ready[2];
        EXPECT_EQ(pipe(ready), 0);
        pid_ = fork();
        if (pid_ == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (size_t page = 0; page < pages; ++page)
                memset(base_ + page * kPageSize, static_cast<int>(page % 251), kPageSize);
            mprotect(base_ + 3 * kPageSize, 2 * kPageSize, PROT_NONE);
            (void)!write(ready[1], "x", 1);
            for (;;)
                pause();
        }
        char byte;
        EXPECT_EQ(read(ready[0], &byte, 1), 1);
        close(ready[0]);
        close(ready[1]);
        mem_.reset(open(fmt::format("/proc/{}/mem", pid_).c_str(), O_RDONLY | O_CLOEXEC));
    }
    ~Victim() {
        kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
        munmap(base_, pages_ * kPageSize);
    }
    pid_t pid() const { return pid_; }
    int mem() const { return mem_.get(); }
    ProcessSource source() const { return {pid_, mem_.get()}; }
    PageRun run(size_t first, size_t last) const {
        auto base = reinterpret_cast<uint64_t>(base_);
        return {base + first * kPageSize, base + last * kPageSize};
    }

  private:
    size_t pages_;
    char* base_;
    pid_t pid_;
    ScopedFd mem_;
};

class Progress : public SilentSteps {
  public:
    void moved(uint64_t done, uint64_t total) override {
        most = std::max(most.load(), done);
        of = total;
    }
    std::atomic<uint64_t> most = 0;
    std::atomic<uint64_t> of = 0;
};

class Memory : public testing::Test {
  protected:
    TemporaryDir tmp;
    ImageDir dir = *ImageDir::open(AT_FDCWD, tmp.path());
    SilentSteps silent;

    std::vector<images::pagemap_entry> pagemap(ImageType type, uint64_t id, uint32_t pages_id) {
        auto reader = dir.open_image(type, id);
        EXPECT_TRUE(reader) << reader.error().line();
        auto head = reader->expect<images::pagemap_head>();
        EXPECT_EQ(head->pages_id(), pages_id);
        return *reader->rest<images::pagemap_entry>();
    }
    std::string pages(uint32_t id) {
        return *read_file(dir.fd(), images::image_name(ImageType::kPages, id), 1u << 30);
    }
};

TEST_F(Memory, ContentOfRunsProtectedPagesIncluded) {
    Victim victim(5000);  // 20 MiB: more than one thread, many chunks
    for (unsigned threads : {0u, 1u, 3u}) {
        PageImages images(dir);
        std::vector<PageSegment> segments{{victim.run(1, 6), true},
                                          {victim.run(6, 7), true},
                                          {victim.run(7, 8), false},
                                          {victim.run(100, 5000), false}};
        ASSERT_TRUE(images.add_process(42, victim.source(), segments));
        Progress progress;
        auto done = images.run(progress, threads);
        ASSERT_TRUE(done) << done.error().line();
        EXPECT_EQ(images.process_pages(), 4907u);
        EXPECT_EQ(progress.most, 4907 * kPageSize);
        EXPECT_EQ(progress.of, 4907 * kPageSize);
        auto entries = pagemap(ImageType::kPagemap, 42, 1);
        ASSERT_EQ(entries.size(), 3u);
        EXPECT_EQ(entries[0].nr_pages(), 6u);
        EXPECT_EQ(entries[0].flags(), images::kPagesPresent | images::kPagesLazy);
        EXPECT_EQ(entries[2].vaddr(), victim.run(100, 5000).start);
        std::string content = pages(1);
        ASSERT_EQ(content.size(), 4907 * kPageSize);
        for (size_t i = 0; i < 4907; ++i) {
            size_t page = i < 7 ? i + 1 : i - 7 + 100;
            std::string expected(kPageSize, static_cast<char>(page % 251));
            ASSERT_EQ(content.compare(i * kPageSize, kPageSize, expected), 0) << page;
        }
    }
}

TEST_F(Memory, ManySinglePages) {
    Victim victim(3000);
    PageImages images(dir);
    std::vector<PageSegment> segments;
    for (size_t page = 0; page < 3000; page += 2)
        segments.push_back({victim.run(page, page + 1), false});
    ASSERT_TRUE(images.add_process(1, victim.source(), segments));
    auto done = images.run(silent, 2);
    ASSERT_TRUE(done) << done.error().line();
    std::string content = pages(1);
    ASSERT_EQ(content.size(), 1500 * kPageSize);
    for (size_t i = 0; i < 1500; ++i)
        ASSERT_EQ(static_cast<unsigned char>(content[i * kPageSize]), i * 2 % 251);
}

TEST_F(Memory, UnmappedAddressIsAnError) {
    Victim victim(10);
    PageImages images(dir);
    ASSERT_TRUE(images.add_process(1, victim.source(),
                                   {{victim.run(0, 2), false}, {{0x10000, 0x11000}, false}}));
    auto done = images.run(silent, 2);
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().object, fmt::format("pid {}", victim.pid()));
}

TEST_F(Memory, DeadProcessIsGone) {
    pid_t gone = fork();
    if (gone == 0)
        _exit(0);
    waitpid(gone, nullptr, 0);
    PageImages images(dir);
    ASSERT_TRUE(images.add_process(1, {gone, -1}, {{{0x10000, 0x11000}, false}}));
    auto done = images.run(silent);
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().kind, ErrorKind::kGone);
}

// What a copy holds is moved later, to its place between the rest.
TEST_F(Memory, TwoSourcesOfOneFile) {
    Victim mixed(2500), copied(10);
    PageImages images(dir);
    auto with_copy = [](Victim& victim) {
        ProcessSource source = victim.source();
        source.copy = victim.pid();
        source.copy_mem_fd = victim.mem();
        return source;
    };
    ASSERT_TRUE(images.add_process(1, with_copy(mixed),
                                   {{mixed.run(0, 1000), false, true},
                                    {mixed.run(1000, 1003), false, false},
                                    {mixed.run(1003, 2500), true, true}}));
    ASSERT_TRUE(images.add_process(2, with_copy(copied), {{copied.run(0, 10), false, true}}));
    images.want_digests();
    Progress progress;
    ASSERT_TRUE(images.run(progress, 2));
    EXPECT_EQ(progress.most, 3 * kPageSize);
    EXPECT_EQ(progress.of, 2510 * kPageSize);
    EXPECT_EQ(pages(1)[0], 0) << "page 1 is for later";
    EXPECT_EQ(static_cast<unsigned char>(pages(1)[1001 * kPageSize]), 1001 % 251);
    EXPECT_EQ(images.bytes_later(), 2507 * kPageSize);
    ASSERT_TRUE(images.run_later(progress, 2));
    EXPECT_EQ(progress.most, 2510 * kPageSize);
    std::string content = pages(1);
    ASSERT_EQ(content.size(), 2500 * kPageSize);
    for (size_t i = 0; i < 2500; ++i)
        ASSERT_EQ(static_cast<unsigned char>(content[i * kPageSize]), i % 251) << i;
    auto digests = images.digests();
    ASSERT_EQ(digests.size(), 1u) << "of what came from one place alone";
    EXPECT_EQ(digests[0], *images::digest_file(dir, digests[0].name, 1));
}

// Two processes, one of them with more than one digest's chunk, moved by two threads.
TEST_F(Memory, DigestsAreThoseOfTheFiles) {
    Victim large(2500), small(10);
    PageImages images(dir);
    ASSERT_TRUE(images.add_process(1, large.source(),
                                   {{large.run(0, 7), false}, {large.run(100, 2500), false}}));
    ASSERT_TRUE(images.add_process(2, small.source(), {{small.run(0, 3), false}}));
    images.want_digests();
    ASSERT_TRUE(images.run(silent, 2));
    auto digests = images.digests();
    ASSERT_EQ(digests.size(), 2u);
    EXPECT_EQ(digests[0].chunks.size(), 3u);
    for (const auto& digest : digests) {
        auto read = images::digest_file(dir, digest.name, 1);
        ASSERT_TRUE(read);
        EXPECT_EQ(digest, *read) << digest.name;
    }
}

TEST_F(Memory, FullDiskIsAnError) {
    Victim victim(10);
    ScopedFd full(open("/dev/full", O_WRONLY | O_CLOEXEC));
    ASSERT_TRUE(full);
    PagePump pump;
    pump.add({victim.pid(), victim.mem(), "victim"}, {victim.run(0, 10)}, full.get(), "pages-1.img");
    auto done = pump.run(silent);
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().errno_code, ENOSPC);
    EXPECT_EQ(done.error().object, "pages-1.img");
}

TEST_F(Memory, SharedMemoryWithHolesAndOddEnd) {
    ScopedFd file(memfd_create("m", MFD_CLOEXEC));
    constexpr uint64_t kSize = 100 * kPageSize + 10;
    ASSERT_EQ(ftruncate(file.get(), kSize), 0);
    for (uint64_t page : {0, 1, 50, 100})
        ASSERT_EQ(pwrite(file.get(), "hello", 5, static_cast<off_t>(page * kPageSize)), 5);
    PageImages images(dir);
    ASSERT_TRUE(images.add_shared(77, file.get(), kSize));
    ASSERT_TRUE(images.run(silent));
    EXPECT_EQ(images.shared_pages(), 4u);
    EXPECT_TRUE(images.digests().empty()) << "the pump does not see its end";
    auto entries = pagemap(ImageType::kPagemapShmem, 77, 1);
    ASSERT_EQ(entries.size(), 3u);
    EXPECT_EQ(entries[1].vaddr(), 50 * kPageSize);
    EXPECT_EQ(entries[2].vaddr(), 100 * kPageSize);
    std::string page = "hello" + std::string(kPageSize - 5, '\0');
    EXPECT_EQ(pages(1), page + page + page + page);
}

TEST_F(Memory, EmptySharedMemory) {
    ScopedFd file(memfd_create("m", MFD_CLOEXEC));
    ASSERT_EQ(ftruncate(file.get(), 8192), 0);
    PageImages images(dir);
    ASSERT_TRUE(images.add_shared(1, file.get(), 8192));
    ASSERT_TRUE(images.run(silent));
    EXPECT_TRUE(pagemap(ImageType::kPagemapShmem, 1, 1).empty());
    EXPECT_EQ(pages(1), "");
}

}  // namespace
}  // namespace checkpointd
