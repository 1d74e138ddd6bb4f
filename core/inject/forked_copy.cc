// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/inject/forked_copy.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <optional>
#include <utility>

#include "core/arch/x86_64/stub.h"
#include "core/base/io.h"
#include "core/inject/syscall_stops.h"

namespace checkpointd {

// What is done in the helper that all of this goes through.
class CopyMaker {
  public:
    CopyMaker(const RemoteHelper& helper, const std::string& process, const RemoteOptions& options)
        : helper_(helper), object_(fmt::format("helper of {}", process)), options_(options) {}

    Result<ForkedCopy> make() {
        (void)call(SYS_setsid);  // no signal of its group or terminal is meant for the copy
        // Before there is a copy: others wait for the end of pipes and connections.
        CKPT_TRY(call(SYS_close_range, {0, ~0u, 0}));
        CKPT_ASSIGN(uint64_t pid, call(SYS_clone));
        ForkedCopy copy(static_cast<pid_t>(pid));
        CKPT_TRY(next_stop(copy.pid(), name(copy)));
        CKPT_ASSIGN(copy.mem_, open_at(AT_FDCWD, fmt::format("/proc/{}/mem", copy.pid()), O_RDWR));
        CKPT_TRY(wipe_stub(copy));
        return copy;
    }

  private:
    static std::string name(const ForkedCopy& copy) { return fmt::format("copy {}", copy.pid()); }

    Result<uint64_t> call(long nr, const RawArgs& args = {}) const {
        if (options_.on_step)
            options_.on_step("set call of helper");
        CKPT_TRY(
            ptrace_set_regs(helper_.pid, with_call(helper_.regs, helper_.syscall_at, nr, args)));
        CKPT_ASSIGN(user_regs_struct regs, make_call(helper_.pid, object_));
        return answer_of(regs, nr, object_);
    }

    // An image must not hold it.
    Result<void> wipe_stub(const ForkedCopy& copy) const {
        const std::byte zeros[kStubSize] = {};
        auto place = static_cast<off_t>(helper_.syscall_at);
        if (pwrite(copy.mem_fd(), zeros, sizeof(zeros), place) != ssize_t{sizeof(zeros)})
            return fail_errno(name(copy), "cannot write its memory");
        return {};
    }

    const RemoteHelper& helper_;
    std::string object_;
    const RemoteOptions& options_;
};

Result<ForkedCopy> ForkedCopy::make(SeizedProcess& process, const RemoteOptions& options) {
    CKPT_ASSIGN(RemoteSyscalls remote,
                RemoteSyscalls::open(process, process.main_thread(), options));
    std::optional<ForkedCopy> copy;
    CKPT_TRY(remote.with_helper([&](const RemoteHelper& helper) -> Result<void> {
        CopyMaker maker(helper, fmt::format("pid {}", process.pid), options);
        CKPT_ASSIGN(copy, maker.make());
        return {};
    }));
    CKPT_TRY(remote.close());
    return std::move(*copy);
}

ForkedCopy::ForkedCopy(ForkedCopy&& other) noexcept
    : pid_(std::exchange(other.pid_, 0)), mem_(std::move(other.mem_)) {}

ForkedCopy& ForkedCopy::operator=(ForkedCopy&& other) noexcept {
    std::swap(pid_, other.pid_);
    std::swap(mem_, other.mem_);
    return *this;
}

ForkedCopy::~ForkedCopy() {
    if (pid_ != 0)
        kill_traced(pid_);
}

}  // namespace checkpointd
