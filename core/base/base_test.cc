// SPDX-License-Identifier: LGPL-2.1-or-later
#include <cerrno>
#include <cstdlib>
#include <fcntl.h>
#include <unistd.h>
#include <utility>

#include <gtest/gtest.h>

#include "core/base/io.h"
#include "core/base/uncached_file.h"

namespace checkpointd {
namespace {

TEST(Error, LineNamesObjectMessageErrnoAndRemedy) {
    Error error = system_error("pid 7", "cannot seize", EPERM);
    error.remedy = "run as root";
    EXPECT_EQ(error.line(), "pid 7: cannot seize: Operation not permitted (run as root)");
}

TEST(Error, TextIndentsCauses) {
    Error error = system_error("fd 3", "cannot dup", EBADF).wrap("pid 7", "cannot dump");
    EXPECT_EQ(error.text(), "pid 7: cannot dump\n  fd 3: cannot dup: Bad file descriptor");
}

TEST(Error, EsrchMeansGone) {
    EXPECT_EQ(system_error("pid 7", "x", ESRCH).kind, ErrorKind::kGone);
}

TEST(Error, AllBlockersAtOnce) {
    EXPECT_TRUE(all_blockers("u", "m", {}));
    auto result = all_blockers("u", "cannot be carried", {Error{ErrorKind::kUnsupported, "a", "b"},
                                                          Error{ErrorKind::kUnsupported, "c", "d"}});
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().causes.size(), 2u);
}

Result<int> twice(Result<int> in) {
    CKPT_ASSIGN(int value, std::move(in));
    return 2 * value;
}

TEST(Result, AssignPassesValueAndError) {
    EXPECT_EQ(*twice(4), 8);
    EXPECT_EQ(twice(fail(ErrorKind::kGone, "o", "m")).error().kind, ErrorKind::kGone);
}

TEST(Io, ReadFileRefusesMoreThanTheLimit) {
    EXPECT_FALSE(read_file(AT_FDCWD, "/proc/self/maps", 10));
    EXPECT_TRUE(read_file(AT_FDCWD, "/proc/self/maps"));
}

// In a file system with a page cache and one without anything else (tmpfs has no direct reads before Linux 6.6).
TEST(UncachedFile, ReadsWhatIsThereWhetherItIsCachedOrNot) {
    constexpr size_t kSize = 5 * UncachedFile::kPage + 100;
    std::string content(kSize, 0);
    for (size_t i = 0; i < kSize; ++i)
        content[i] = static_cast<char>(i * 7 + i / 256);
    for (const std::string folder : {"/var/tmp", "/dev/shm"}) {
        std::string path = folder + "/checkpointd-base-XXXXXX";
        const ScopedFd file(mkstemp(path.data()));
        ASSERT_TRUE(write_all(file.get(), content.data(), kSize, path));
        auto opened = UncachedFile::open(AT_FDCWD, path);
        ASSERT_EQ(unlink(path.c_str()), 0);
        ASSERT_TRUE(opened);
        alignas(UncachedFile::kPage) std::byte room[UncachedFile::room_for(kSize)];
        for (const bool is_cached : {true, false})
            for (auto [offset, size] : {std::pair<size_t, size_t>{0, 4096}, {8, 4096}, {8, 8192}, {4095, 4097}, {0, kSize},
                                        {kSize - 1, 1}, {5 * 4096, 100}}) {
                if (!is_cached) {
                    ASSERT_EQ(fsync(file.get()), 0);
                    ASSERT_EQ(posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED), 0);
                }
                auto read = opened->read(offset, size, room);
                ASSERT_TRUE(read) << read.error().text();
                ASSERT_LE(*read + size, room + UncachedFile::room_for(size));
                EXPECT_EQ(std::string(reinterpret_cast<const char*>(*read), size), content.substr(offset, size))
                    << folder << " " << offset << " " << size << " " << is_cached;
            }
        for (const size_t offset : {kSize - 99, kSize + 4096, size_t{2 * 4096}}) {
            auto beyond = opened->read(offset, kSize - 4096, room);
            ASSERT_FALSE(beyond);
            EXPECT_EQ(beyond.error().kind, ErrorKind::kBadImage) << beyond.error().text();
        }
    }
}

TEST(ScopedFd, ClosesOnceAndMoves) {
    int raw = open("/dev/null", O_RDONLY | O_CLOEXEC);
    {
        ScopedFd a(raw);
        ScopedFd b(std::move(a));
        EXPECT_FALSE(a.valid());  // NOLINT(bugprone-use-after-move)
        EXPECT_EQ(b.get(), raw);
    }
    EXPECT_EQ(fcntl(raw, F_GETFD), -1);
}

}  // namespace
}  // namespace checkpointd
