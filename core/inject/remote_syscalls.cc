// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/inject/remote_syscalls.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <fmt/core.h>
#include <linux/audit.h>
#include <linux/ptrace.h>
#include <optional>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <vector>

#include "core/arch/x86_64/restart.h"
#include "core/arch/x86_64/stub.h"
#include "core/inject/dead_bytes.h"
#include "core/inject/seccomp_filter.h"
#include "core/kernel/page_scan.h"
#include "core/kernel/proc_maps.h"

namespace checkpointd {
namespace {

constexpr uint64_t kAllSignals = ~uint64_t{0};
constexpr uint64_t kSyscallSize = 2;
constexpr int kMaxErrno = 4095;

user_regs_struct with_call(user_regs_struct regs, uint64_t stub, long nr,
                           const std::array<RemoteArg, 6>& args) {
    regs.rip = stub;
    regs.orig_rax = ~uint64_t{0};  // the kernel must not see an interrupted call here
    regs.rax = static_cast<uint64_t>(nr);
    regs.rdi = args[0].value;
    regs.rsi = args[1].value;
    regs.rdx = args[2].value;
    regs.r10 = args[3].value;
    regs.r8 = args[4].value;
    regs.r9 = args[5].value;
    return regs;
}

// rt_sigprocmask(2) that neither sets nor asks: the one call the stub makes anyway.
const std::array<RemoteArg, 6> kHarmlessArgs{0, 0, 0, 8};

// The low end of the main stack if it is far below the stack pointer; 0 if there is none.
Result<uint64_t> unused_stack(const SeizedProcess& process) {
    constexpr uint64_t kDistance = 16 * kPageSize;
    uint64_t rsp = process.main_thread().regs().rsp;
    if (process.leader_exited)
        return 0;
    CKPT_ASSIGN(std::vector<ProcMapping> maps, read_maps(process.main_thread().tid()));
    for (const ProcMapping& mapping : maps)
        if (mapping.name == "[stack]" && mapping.start + kDistance < rsp && rsp < mapping.end)
            return mapping.start;
    return 0;
}

}  // namespace

class RemoteSyscalls::Impl {
  public:
    Impl(SeizedProcess& process, SeizedThread& thread, RemoteOptions options)
        : process_(process), thread_(thread), tid_(thread.tid()), options_(std::move(options)) {}

    Result<void> open();
    Result<uint64_t> call(long nr, const std::array<RemoteArg, 6>& args);
    Result<uint64_t> scratch();
    Result<void> close();
    const SeizedProcess& process() const { return process_; }

  private:
    // What the thread's stop is: one of the signal path, in which registers may be put back, or one at the
    // end of a system call.
    enum class Where { kOutside, kEventStop, kSyscallExit };

    void step(const char* name) const {
        if (options_.on_step)
            options_.on_step(name);
    }
    std::string object() const {
        return tid_ == process_.pid ? fmt::format("pid {}", process_.pid)
                                    : fmt::format("pid {} thread {}", process_.pid, tid_);
    }
    Result<void> load_filters();
    bool allowed(long nr, const std::array<RemoteArg, 6>& args) const;
    Result<void> suspend_filters();
    Result<void> put_stub();
    Result<void> enter_stub();
    Result<int> wait_stop();
    Result<void> run_to(SyscallStop wanted);
    Result<void> to_event_stop();
    Result<uint64_t> find_scratch();
    Result<void> drop_scratch();
    Result<void> leave_stub();

    SeizedProcess& process_;
    SeizedThread& thread_;
    pid_t tid_;
    RemoteOptions options_;
    Where where_ = Where::kOutside;
    uint64_t stub_ = 0;
    bool strict_seccomp_ = false;
    bool suspended_ = false;
    std::vector<SeccompFilter> filters_;
    std::optional<uint64_t> scratch_;
    bool scratch_mapped_ = false;
    std::vector<std::byte> scratch_before_;
};

Result<void> RemoteSyscalls::Impl::load_filters() {
    CKPT_ASSIGN(int mode, thread_.seccomp_mode());
    strict_seccomp_ = mode == 1;
    Result<std::vector<SeccompFilter>> filters = thread_.seccomp_filters();
    if (filters)
        filters_ = std::move(*filters);
    else
        strict_seccomp_ = true;  // unreadable: as if it forbade everything
    return {};
}

bool RemoteSyscalls::Impl::allowed(long nr, const std::array<RemoteArg, 6>& args) const {
    if (strict_seccomp_)
        return false;
    seccomp_data data{};
    data.nr = static_cast<int>(nr);
    data.arch = AUDIT_ARCH_X86_64;
    data.instruction_pointer = stub_ + kSyscallSize;
    for (size_t i = 0; i < args.size(); ++i)
        data.args[i] = args[i].value;
    return seccomp_allows(filters_, data);
}

// While this is on and we die, the filter judges the injected call again: from setting the registers of a
// forbidden call until the kernel has let it in, and where it forbids rt_sigprocmask until close().
Result<void> RemoteSyscalls::Impl::suspend_filters() {
    if (suspended_)
        return {};
    Result<void> done = ptrace_set_options(tid_, PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP);
    if (!done && done.error().kind == ErrorKind::kGone)
        return done;
    if (!done)
        return tl::unexpected(Error{ErrorKind::kUnsupported, object(),
                                    "its seccomp filter forbids what must be asked of it",
                                    "run with CAP_SYS_ADMIN and without a seccomp filter of our own",
                                    done.error().errno_code, {}});
    suspended_ = true;
    return {};
}

// All of it before any register moves: a thread let go inside finds its way home complete.
Result<void> RemoteSyscalls::Impl::put_stub() {
    CKPT_ASSIGN(stub_, find_dead_bytes(process_, options_.place));
    StubReturn back;
    back.plain = resume_in_user_mode(thread_.regs());
    back.after_handler = resume_after_handler(thread_.regs());
    back.signal_mask = thread_.signal_mask();
    back.may_poll = allowed(SYS_ppoll, {0, 0, stub_, stub_, 8});
    std::vector<std::byte> stub = assemble_stub(back);
    step("write stub");
    return process_.write_memory(stub_, stub.data(), stub.size());
}

// The mask comes second: the stub sets it back, so it may change only when the stub is what runs next.
Result<void> RemoteSyscalls::Impl::enter_stub() {
    step("enter stub");
    CKPT_TRY(ptrace_set_regs(tid_,
                             with_call(thread_.regs(), stub_, SYS_rt_sigprocmask, kHarmlessArgs)));
    where_ = Where::kEventStop;
    step("block signals");
    return ptrace_set_sigmask(tid_, kAllSignals);
}

Result<void> RemoteSyscalls::Impl::open() {
    CKPT_TRY(load_filters());
    CKPT_TRY(put_stub());
    if (!allowed(SYS_rt_sigprocmask, {2, stub_, 0, 8}) || !allowed(SYS_rt_sigprocmask, kHarmlessArgs))
        CKPT_TRY(suspend_filters());
    return enter_stub();
}

// The status of the next stop.
Result<int> RemoteSyscalls::Impl::wait_stop() {
    int status = 0;
    pid_t got = 0;
    do
        got = waitpid(tid_, &status, __WALL);
    while (got < 0 && errno == EINTR);
    if (got == tid_ && WIFSTOPPED(status))
        return status;
    where_ = Where::kOutside;
    return fail(ErrorKind::kGone, object(), "died while it was asked");
}

// Continues to the next entry or exit of a system call. SIGSTOP cannot be blocked: it is let through, and the
// group-stop that follows is stepped over; detaching brings it back (kernel/ptrace.c, __ptrace_unlink).
Result<void> RemoteSyscalls::Impl::run_to(SyscallStop wanted) {
    for (int signal = 0;;) {
        step("run");
        CKPT_TRY(ptrace_syscall(tid_, signal));
        CKPT_ASSIGN(int status, wait_stop());
        signal = 0;
        if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
            CKPT_ASSIGN(SyscallStop stop, ptrace_syscall_stop(tid_));
            if (stop == wanted)
                return {};
        } else if (status >> 16 == 0) {
            signal = WSTOPSIG(status);
        }
    }
}

Result<uint64_t> RemoteSyscalls::Impl::call(long nr, const std::array<RemoteArg, 6>& args) {
    if (where_ == Where::kOutside)
        return fail(ErrorKind::kGone, object(), "died or was let go");
    if (!allowed(nr, args))
        CKPT_TRY(suspend_filters());
    step("set call");
    CKPT_TRY(ptrace_set_regs(tid_, with_call(thread_.regs(), stub_, nr, args)));
    CKPT_TRY(run_to(SyscallStop::kEntry));
    user_regs_struct regs{};
    do {
        CKPT_TRY(run_to(SyscallStop::kExit));
        where_ = Where::kSyscallExit;
        CKPT_ASSIGN(regs, ptrace_get_regs(tid_));
    } while (restart_kind(regs) != 0);
    auto value = static_cast<int64_t>(regs.rax);
    if (value < 0 && value >= -kMaxErrno)
        return tl::unexpected(Error{ErrorKind::kSystem, object(),
                                    fmt::format("system call {} made in it failed", nr), {},
                                    static_cast<int>(-value), {}});
    return regs.rax;
}

// The lowest page of the main stack has hardly ever been touched. If it has, it lies far below the stack
// pointer, where nothing lives, and is put back all the same. Without a main stack: a page of our own.
Result<uint64_t> RemoteSyscalls::Impl::find_scratch() {
    if (process_.room.scratch == 0) {
        CKPT_ASSIGN(process_.room.scratch, unused_stack(process_));
    }
    if (process_.room.scratch != 0) {
        scratch_before_.resize(kScratchSize);
        CKPT_TRY(process_.read_memory(process_.room.scratch, scratch_before_.data(), kScratchSize));
        return process_.room.scratch;
    }
    scratch_mapped_ = true;
    return call(SYS_mmap, {0, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0});
}

Result<uint64_t> RemoteSyscalls::Impl::scratch() {
    if (!scratch_) {
        CKPT_ASSIGN(uint64_t where, find_scratch());
        scratch_ = where;
        std::vector<std::byte> zeros(kScratchSize);
        step("clear scratch");
        CKPT_TRY(process_.write_memory(where, zeros.data(), zeros.size()));
    }
    return *scratch_;
}

Result<void> RemoteSyscalls::Impl::drop_scratch() {
    if (!scratch_)
        return {};
    uint64_t where = *scratch_;
    scratch_.reset();
    step("drop scratch");
    if (!scratch_mapped_)
        return process_.write_memory(where, scratch_before_.data(), scratch_before_.size());
    CKPT_TRY(call(SYS_munmap, {where, kPageSize}));
    return {};
}

// Only in a stop of the signal path do the original registers mean the same to the kernel as at the beginning:
// an interrupted call is restarted, or ended by a handler.
Result<void> RemoteSyscalls::Impl::to_event_stop() {
    step("interrupt");
    CKPT_TRY(ptrace_interrupt(tid_));
    for (int signal = 0;;) {
        step("leave call");
        CKPT_TRY(ptrace_cont(tid_, signal));
        CKPT_ASSIGN(int status, wait_stop());
        if (status >> 16 == PTRACE_EVENT_STOP)
            return {};
        signal = status >> 16 == 0 ? WSTOPSIG(status) : 0;
    }
}

Result<void> RemoteSyscalls::Impl::leave_stub() {
    if (where_ == Where::kSyscallExit)
        CKPT_TRY(to_event_stop());
    step("restore mask");
    CKPT_TRY(ptrace_set_sigmask(tid_, thread_.signal_mask()));
    step("restore registers");
    CKPT_TRY(ptrace_set_regs(tid_, thread_.regs()));
    where_ = Where::kOutside;
    return {};
}

Result<void> RemoteSyscalls::Impl::close() {
    if (where_ != Where::kOutside) {
        CKPT_TRY(drop_scratch());
        CKPT_TRY(leave_stub());
    }
    if (suspended_)
        CKPT_TRY(ptrace_set_options(tid_, PTRACE_O_TRACESYSGOOD));
    suspended_ = false;
    if (stub_ == 0)
        return {};
    step("wipe stub");
    std::vector<std::byte> zeros(kStubSize);
    return process_.write_memory(std::exchange(stub_, 0), zeros.data(), zeros.size());
}

RemoteSyscalls::RemoteSyscalls(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
RemoteSyscalls::RemoteSyscalls(RemoteSyscalls&&) noexcept = default;

RemoteSyscalls& RemoteSyscalls::operator=(RemoteSyscalls&& other) noexcept {
    if (this != &other) {
        (void)close();
        impl_ = std::move(other.impl_);
    }
    return *this;
}

RemoteSyscalls::~RemoteSyscalls() { (void)close(); }

Result<RemoteSyscalls> RemoteSyscalls::open(SeizedProcess& process, SeizedThread& thread,
                                            const RemoteOptions& options) {
    auto impl = std::make_unique<Impl>(process, thread, options);
    RemoteSyscalls remote(std::move(impl));  // closes what a failed open() left
    Result<void> opened = remote.impl_->open();
    if (!opened)
        return tl::unexpected(std::move(opened).error());
    return remote;
}

Result<uint64_t> RemoteSyscalls::call(long nr, std::array<RemoteArg, 6> args) {
    return impl_->call(nr, args);
}

Result<uint64_t> RemoteSyscalls::scratch() { return impl_->scratch(); }

Result<void> RemoteSyscalls::read(uint64_t address, void* into, size_t size) const {
    return impl_->process().read_memory(address, into, size);
}

Result<void> RemoteSyscalls::write(uint64_t address, const void* from, size_t size) const {
    return impl_->process().write_memory(address, from, size);
}

Result<void> RemoteSyscalls::close() {
    if (!impl_)
        return {};
    Result<void> closed = impl_->close();
    impl_.reset();
    return closed;
}

}  // namespace checkpointd
