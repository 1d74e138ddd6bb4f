// SPDX-License-Identifier: LGPL-2.1-or-later
#include <gtest/gtest.h>

#include <cstdlib>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/kernel/page_scan.h"

namespace checkpointd {
namespace {

class PageScan : public testing::TestWithParam<ScanMethod> {
  protected:
    // The scanner, or none where this kernel has no such method.
    std::optional<PageScanner> scanner() {
        auto opened = PageScanner::open(getpid(), GetParam());
        if (!opened && opened.error().kind == ErrorKind::kUnsupported)
            return std::nullopt;
        EXPECT_TRUE(opened) << opened.error().line();
        return std::move(*opened);
    }
    static uint64_t number(const void* address) { return reinterpret_cast<uint64_t>(address); }
};

TEST_P(PageScan, AnonymousMemory) {
    auto scan = scanner();
    if (!scan)
        GTEST_SKIP() << "not in this kernel";
    constexpr size_t kPages = 20000;  // more than one read of the table
    auto* memory = static_cast<char*>(mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(memory, MAP_FAILED);
    madvise(memory, kPages * kPageSize, MADV_NOHUGEPAGE);
    for (size_t page : {1, 2, 3, 7, 9000, 19999})
        memory[page * kPageSize] = 1;
    (void)*static_cast<volatile char*>(memory + 5 * kPageSize);  // the zero page
    mprotect(memory + 2 * kPageSize, kPageSize, PROT_NONE);
    auto runs = scan->own_pages(number(memory), number(memory) + kPages * kPageSize);
    ASSERT_TRUE(runs) << runs.error().line();
    std::vector<PageRun> expected;
    for (auto [first, last] : {std::pair{1, 4}, {7, 8}, {9000, 9001}, {19999, 20000}})
        expected.push_back({number(memory) + first * kPageSize, number(memory) + last * kPageSize});
    EXPECT_EQ(*runs, expected);
    munmap(memory, kPages * kPageSize);
}

TEST_P(PageScan, ScatteredPages) {
    auto scan = scanner();
    if (!scan)
        GTEST_SKIP() << "not in this kernel";
    constexpr size_t kPages = 4000;  // more runs than one answer of the ioctl holds
    auto* memory = static_cast<char*>(mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(memory, MAP_FAILED);
    madvise(memory, kPages * kPageSize, MADV_NOHUGEPAGE);
    for (size_t page = 0; page < kPages; page += 2)
        memory[page * kPageSize] = 1;
    auto runs = scan->own_pages(number(memory), number(memory) + kPages * kPageSize);
    ASSERT_TRUE(runs);
    ASSERT_EQ(runs->size(), kPages / 2);
    for (size_t i = 0; i < runs->size(); ++i)
        EXPECT_EQ((*runs)[i].start, number(memory) + 2 * i * kPageSize);
    munmap(memory, kPages * kPageSize);
}

TEST_P(PageScan, OnlyChangedPagesOfPrivateFile) {
    auto scan = scanner();
    if (!scan)
        GTEST_SKIP() << "not in this kernel";
    int fd = open("/tmp", O_TMPFILE | O_RDWR, 0600);
    ASSERT_GE(fd, 0);
    std::string content(4 * kPageSize, 'x');
    ASSERT_EQ(write(fd, content.data(), content.size()), static_cast<ssize_t>(content.size()));
    auto* memory = static_cast<char*>(
        mmap(nullptr, content.size(), PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
    ASSERT_NE(memory, MAP_FAILED);
    for (size_t page = 0; page < 4; ++page)
        (void)*static_cast<volatile char*>(memory + page * kPageSize);
    memory[2 * kPageSize] = 'y';
    auto runs = scan->own_pages(number(memory), number(memory) + content.size());
    ASSERT_TRUE(runs);
    std::vector<PageRun> expected{{number(memory) + 2 * kPageSize, number(memory) + 3 * kPageSize}};
    EXPECT_EQ(*runs, expected);
    munmap(memory, content.size());
    close(fd);
}

TEST_P(PageScan, GuardsAreNoContent) {
    constexpr int kGuardInstall = 102;  // MADV_GUARD_INSTALL
    auto scan = scanner();
    auto* memory = static_cast<char*>(mmap(nullptr, 4 * kPageSize, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(memory, MAP_FAILED);
    if (!scan || madvise(memory + kPageSize, kPageSize, kGuardInstall) != 0)
        GTEST_SKIP() << "not in this kernel";
    memory[0] = 1;
    auto guards = scan->guard_pages(number(memory), number(memory) + 4 * kPageSize);
    ASSERT_TRUE(guards);
    std::vector<PageRun> guarded{{number(memory) + kPageSize, number(memory) + 2 * kPageSize}};
    EXPECT_EQ(*guards, guarded);
    auto runs = scan->own_pages(number(memory), number(memory) + 4 * kPageSize);
    ASSERT_TRUE(runs);
    std::vector<PageRun> first{{number(memory), number(memory) + kPageSize}};
    EXPECT_EQ(*runs, first);
    munmap(memory, 4 * kPageSize);
}

INSTANTIATE_TEST_SUITE_P(Methods, PageScan,
                         testing::Values(ScanMethod::kIoctl, ScanMethod::kTable),
                         [](const auto& parameter) {
                             return parameter.param == ScanMethod::kIoctl ? "Ioctl" : "Table";
                         });

}  // namespace
}  // namespace checkpointd
