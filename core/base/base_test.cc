// SPDX-License-Identifier: LGPL-2.1-or-later
#include <cerrno>
#include <fcntl.h>

#include <gtest/gtest.h>

#include "core/base/io.h"

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
