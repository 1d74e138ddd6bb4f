// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/restore/executor/steering.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>
#include <charconv>
#include <string>

#include <fmt/core.h>

#include "core/base/io.h"
#include "core/restore/executor/conflicts.h"

namespace checkpointd {

namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kLastPid = "/proc/sys/kernel/ns_last_pid";
constexpr auto kPatience = std::chrono::seconds(10);
constexpr int kPauseMs = 1;

// A write is one whole number, wherever the file offset is (proc_dointvec in kernel/sysctl.c); so
// is a read from its start.
Result<void> write_number(int file, pid_t number) {
    std::string text = std::to_string(number);
    if (pwrite(file, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size()))
        return fail_errno(kLastPid, "write");
    return {};
}

Result<pid_t> read_number(int file) {
    char text[32] = {};
    ssize_t got = pread(file, text, sizeof(text), 0);
    pid_t number = 0;
    if (got <= 0 || std::from_chars(text, text + got, number).ec != std::errc{})
        return fail_errno(kLastPid, "read");
    return number;
}

bool is_taken(pid_t number) {
    struct stat about {};
    return stat(fmt::format("/proc/{}", number).c_str(), &about) == 0;
}

}  // namespace

Result<void> NumberSteering::open() {
    if (file_)
        return {};
    auto file = open_at(AT_FDCWD, kLastPid, O_RDWR);
    if (!file)
        return fail_errno(kLastPid, "open", file.error().errno_code);
    file_ = std::move(*file);
    return {};
}

// A holder that never lets go must not hold us up for ever: without the lock we only have to aim
// more often.
Result<void> NumberSteering::lock() {
    constexpr int kMostPauses = 1000;
    for (int i = 0; i < kMostPauses && flock(file_.get(), LOCK_EX | LOCK_NB) < 0; i++) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return fail_errno(kLastPid, "flock");
        poll(nullptr, 0, kPauseMs);
    }
    return {};
}

Result<void> NumberSteering::wait_until_free(pid_t number) {
    auto [first, is_new] = first_aims_.try_emplace(number, Clock::now());
    if (is_new)
        return {};
    poll(nullptr, 0, kPauseMs);
    while (is_taken(number)) {
        if (Clock::now() - first->second > kPatience)
            return tl::unexpected(taken_number(number));
        poll(nullptr, 0, kPauseMs);
    }
    if (Clock::now() - first->second > kPatience)
        return fail(ErrorKind::kConflict, fmt::format("tid {}", number),
                    "somebody else was quicker each time that it was free", "try again");
    return {};
}

Result<void> NumberSteering::aim(pid_t number) {
    release();
    CKPT_TRY(open());
    CKPT_TRY(wait_until_free(number));
    CKPT_TRY(lock());
    CKPT_ASSIGN(cursor_, read_number(file_.get()));
    return write_number(file_.get(), number - 1);
}

void NumberSteering::release() {
    if (!cursor_)
        return;
    (void)write_number(file_.get(), *cursor_);
    cursor_.reset();
    flock(file_.get(), LOCK_UN);
}

}  // namespace checkpointd
