// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/kernel/ptrace.h"

#include <cerrno>
#include <elf.h>
#include <fmt/core.h>
#include <linux/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

namespace checkpointd {
namespace {

// The system call itself: glibc's ptrace() is declared with an enum that lacks the younger requests.
long raw_ptrace(long request, pid_t tid, uint64_t address, uint64_t data) {
    return syscall(SYS_ptrace, request, tid, address, data);
}

uint64_t pointer(const void* p) { return reinterpret_cast<uint64_t>(p); }

tl::unexpected<Error> failed(pid_t tid, const char* what) {
    return fail_errno(fmt::format("thread {}", tid), what);
}

Result<void> request(long number, pid_t tid, uint64_t address, uint64_t data, const char* what) {
    if (raw_ptrace(number, tid, address, data) < 0)
        return failed(tid, what);
    return {};
}

constexpr uint64_t kXstateLimit = 16384;

// The structure behind PTRACE_GET_RSEQ_CONFIGURATION (linux/ptrace.h since 5.13).
struct RawRseq {
    uint64_t abi_pointer;
    uint32_t abi_size;
    uint32_t signature;
    uint32_t flags;
    uint32_t pad;
};
constexpr long kGetRseqConfiguration = 0x420f;
constexpr long kSeccompGetMetadata = 0x420d;
constexpr long kGetSyscallInfo = 0x420e;

}  // namespace

Result<void> ptrace_seize(pid_t tid, unsigned options) {
    return request(PTRACE_SEIZE, tid, 0, options, "cannot seize");
}

Result<void> ptrace_interrupt(pid_t tid) {
    return request(PTRACE_INTERRUPT, tid, 0, 0, "cannot interrupt");
}

Result<void> ptrace_detach(pid_t tid) {
    return request(PTRACE_DETACH, tid, 0, 0, "cannot detach");
}

Result<void> ptrace_set_options(pid_t tid, unsigned options) {
    return request(PTRACE_SETOPTIONS, tid, 0, options, "cannot set ptrace options");
}

Result<void> ptrace_cont(pid_t tid, int signal) {
    return request(PTRACE_CONT, tid, 0, static_cast<uint64_t>(signal), "cannot continue");
}

Result<void> ptrace_syscall(pid_t tid, int signal) {
    return request(PTRACE_SYSCALL, tid, 0, static_cast<uint64_t>(signal),
                   "cannot continue to a system call");
}

Result<SyscallStop> ptrace_syscall_stop(pid_t tid) {
    uint8_t info[88] = {};  // struct ptrace_syscall_info; `op` is its first byte
    if (raw_ptrace(kGetSyscallInfo, tid, sizeof(info), pointer(info)) < 0)
        return failed(tid, "cannot tell which system call stop this is");
    switch (info[0]) {
        case 1: return SyscallStop::kEntry;
        case 2: return SyscallStop::kExit;
        case 3: return SyscallStop::kSeccomp;
        default: return SyscallStop::kNone;
    }
}

Result<user_regs_struct> ptrace_get_regs(pid_t tid) {
    user_regs_struct regs;
    iovec iov{&regs, sizeof(regs)};
    if (raw_ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS, pointer(&iov)) < 0)
        return failed(tid, "cannot read the registers");
    constexpr unsigned kUser64Selector = 0x33;
    if (iov.iov_len != sizeof(regs) || regs.cs != kUser64Selector)
        return fail(ErrorKind::kUnsupported, fmt::format("thread {}", tid),
                    "runs 32-bit code, which cannot be carried");
    return regs;
}

Result<void> ptrace_set_regs(pid_t tid, const user_regs_struct& regs) {
    iovec iov{const_cast<user_regs_struct*>(&regs), sizeof(regs)};
    return request(PTRACE_SETREGSET, tid, NT_PRSTATUS, pointer(&iov), "cannot set the registers");
}

Result<std::vector<std::byte>> ptrace_get_xstate(pid_t tid) {
    std::vector<std::byte> xstate(kXstateLimit);
    iovec iov{xstate.data(), xstate.size()};
    if (raw_ptrace(PTRACE_GETREGSET, tid, NT_X86_XSTATE, pointer(&iov)) < 0)
        return failed(tid, "cannot read the extended registers");
    xstate.resize(iov.iov_len);
    return xstate;
}

Result<void> ptrace_set_xstate(pid_t tid, const std::vector<std::byte>& xstate) {
    iovec iov{const_cast<std::byte*>(xstate.data()), xstate.size()};
    return request(PTRACE_SETREGSET, tid, NT_X86_XSTATE, pointer(&iov),
                   "cannot set the extended registers");
}

Result<uint64_t> ptrace_get_sigmask(pid_t tid) {
    uint64_t mask = 0;
    CKPT_TRY(request(PTRACE_GETSIGMASK, tid, sizeof(mask), pointer(&mask),
                     "cannot read the signal mask"));
    return mask;
}

Result<void> ptrace_set_sigmask(pid_t tid, uint64_t mask) {
    return request(PTRACE_SETSIGMASK, tid, sizeof(mask), pointer(&mask),
                   "cannot set the signal mask");
}

Result<std::vector<siginfo_t>> ptrace_pending_signals(pid_t tid, bool shared) {
    std::vector<siginfo_t> all;
    for (;;) {
        siginfo_t batch[32];
        ptrace_peeksiginfo_args args{};
        args.off = all.size();
        args.flags = shared ? PTRACE_PEEKSIGINFO_SHARED : 0;
        args.nr = std::size(batch);
        long n = raw_ptrace(PTRACE_PEEKSIGINFO, tid, pointer(&args), pointer(batch));
        if (n < 0)
            return failed(tid, "cannot read pending signals");
        all.insert(all.end(), batch, batch + n);
        if (n < args.nr)
            return all;
    }
}

Result<std::optional<RseqConfiguration>> ptrace_get_rseq(pid_t tid) {
    RawRseq raw{};
    if (raw_ptrace(kGetRseqConfiguration, tid, sizeof(raw), pointer(&raw)) < 0) {
        if (errno == EIO || errno == EINVAL)
            return std::optional<RseqConfiguration>();
        return failed(tid, "cannot read the rseq registration");
    }
    return RseqConfiguration{raw.abi_pointer, raw.abi_size, raw.signature, raw.flags};
}

Result<std::optional<std::vector<sock_filter>>> ptrace_get_seccomp_filter(pid_t tid,
                                                                          unsigned index) {
    long count = raw_ptrace(PTRACE_SECCOMP_GET_FILTER, tid, index, 0);
    if (count < 0 && errno == ENOENT)
        return std::optional<std::vector<sock_filter>>();
    if (count < 0)
        return failed(tid, "cannot read its seccomp filters");
    std::vector<sock_filter> filter(static_cast<size_t>(count));
    if (raw_ptrace(PTRACE_SECCOMP_GET_FILTER, tid, index, pointer(filter.data())) < 0)
        return failed(tid, "cannot read its seccomp filters");
    return filter;
}

Result<uint64_t> ptrace_get_seccomp_flags(pid_t tid, unsigned index) {
    struct {
        uint64_t filter_off;
        uint64_t flags;
    } meta{index, 0};
    if (raw_ptrace(kSeccompGetMetadata, tid, sizeof(meta), pointer(&meta)) < 0)
        return failed(tid, "cannot read the flags of a seccomp filter");
    return meta.flags;
}

}  // namespace checkpointd
