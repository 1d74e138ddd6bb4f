// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/inject/remote_syscalls.h"

#include <fmt/core.h>
#include <linux/audit.h>
#include <linux/ptrace.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <optional>
#include <utility>
#include <vector>

#include "core/arch/x86_64/restart.h"
#include "core/arch/x86_64/stub.h"
#include "core/inject/dead_bytes.h"
#include "core/inject/seccomp_filter.h"
#include "core/inject/syscall_stops.h"
#include "core/kernel/page_scan.h"
#include "core/kernel/proc_maps.h"
#include "core/kernel/proc_task.h"

namespace checkpointd {
namespace {

constexpr uint64_t kAllSignals = ~uint64_t{0};

RawArgs raw(const std::array<RemoteArg, 6>& args) {
    RawArgs out{};
    for (size_t i = 0; i < args.size(); ++i)
        out[i] = args[i].value;
    return out;
}

// rt_sigprocmask(2) that neither sets nor asks: the one call the stub makes anyway.
const std::array<RemoteArg, 6> kHarmlessArgs{0, 0, 0, 8};

// clone(2) with its memory and no exit signal, on the same stack, which it never uses.
constexpr RawArgs kHelper{CLONE_VM};

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
    Result<void> with_helper(const HelperUse& use);
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
    unsigned options(unsigned more = 0) const {
        return PTRACE_O_TRACESYSGOOD | (suspended_ ? unsigned{PTRACE_O_SUSPEND_SECCOMP} : 0u) |
               more;
    }
    Result<void> check_children() const;
    Result<void> make_helper(const HelperUse& use);
    Result<void> use_helper(pid_t helper, const HelperUse& use);
    Result<void> put_stub();
    Result<void> enter_stub();
    template <typename T>
    Result<T> unless_gone(Result<T> result);
    Result<user_regs_struct> run_call();
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
    CKPT_TRY(ptrace_set_regs(
        tid_, with_call(thread_.regs(), stub_, SYS_rt_sigprocmask, raw(kHarmlessArgs))));
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

// A task that died is outside of everything.
template <typename T>
Result<T> RemoteSyscalls::Impl::unless_gone(Result<T> result) {
    if (!result && result.error().kind == ErrorKind::kGone)
        where_ = Where::kOutside;
    return result;
}

// Makes the call that stands in the registers.
Result<user_regs_struct> RemoteSyscalls::Impl::run_call() {
    CKPT_ASSIGN(user_regs_struct regs,
                unless_gone(make_call(tid_, object(), [this] { step("run"); })));
    where_ = Where::kSyscallExit;
    return regs;
}

Result<uint64_t> RemoteSyscalls::Impl::call(long nr, const std::array<RemoteArg, 6>& args) {
    if (where_ == Where::kOutside)
        return fail(ErrorKind::kGone, object(), "died or was let go");
    if (!allowed(nr, args))
        CKPT_TRY(suspend_filters());
    step("set call");
    CKPT_TRY(ptrace_set_regs(tid_, with_call(thread_.regs(), stub_, nr, raw(args))));
    CKPT_ASSIGN(user_regs_struct regs, run_call());
    return answer_of(regs, nr, object());
}

// Kills and reaps a traced child. Its parent hears of it only when we have.
class TracedChild {
  public:
    explicit TracedChild(pid_t pid) : pid_(pid) {}
    TracedChild(const TracedChild&) = delete;
    TracedChild& operator=(const TracedChild&) = delete;
    ~TracedChild() { kill_traced(pid_); }

  private:
    pid_t pid_;
};

// It is born without EXITKILL, which its maker must not have; until it has it, our death lets it
// run to its own end.
Result<void> RemoteSyscalls::Impl::use_helper(pid_t pid, const HelperUse& use) {
    const TracedChild child(pid);
    CKPT_TRY(next_stop(pid, fmt::format("helper of {}", object())));
    step("bind helper");
    CKPT_TRY(ptrace_set_options(pid, options(PTRACE_O_EXITKILL | PTRACE_O_TRACECLONE)));
    step("use helper");
    CKPT_ASSIGN(user_regs_struct regs, ptrace_get_regs(pid));
    return use({pid, stub_, regs});
}

Result<void> RemoteSyscalls::Impl::make_helper(const HelperUse& use) {
    step("set clone");
    CKPT_TRY(
        ptrace_set_regs(tid_, with_call(thread_.regs(), stub_ + kCloneEntry, SYS_clone, kHelper)));
    CKPT_ASSIGN(user_regs_struct regs, run_call());
    CKPT_ASSIGN(uint64_t helper, answer_of(regs, SYS_clone, object()));
    Result<void> used = use_helper(static_cast<pid_t>(helper), use);
    step("wait for helper");
    CKPT_TRY(run_call());  // waitid, by the stub itself
    return used;
}

Result<void> RemoteSyscalls::Impl::with_helper(const HelperUse& use) {
    if (where_ == Where::kOutside)
        return fail(ErrorKind::kGone, object(), "died or was let go");
    CKPT_TRY(check_children());
    // Should we die, the stub makes it by itself, and no filter is suspended any more.
    if (!allowed(SYS_waitid, {P_PID, 1, 0, WEXITED | unsigned{__WALL}, 0, 0}))
        return fail(ErrorKind::kUnsupported, object(), "its seccomp filter forbids waitid");
    if (!allowed(SYS_clone, {CLONE_VM}) || !allowed(SYS_clone, {}) ||
        !allowed(SYS_close_range, {0, ~0u, 0}))
        CKPT_TRY(suspend_filters());
    CKPT_TRY(ptrace_set_options(tid_, options(PTRACE_O_TRACECLONE)));
    Result<void> used = make_helper(use);
    CKPT_TRY(ptrace_set_options(tid_, options()));
    return used;
}

// The kernel answers with numbers of the task's PID namespace, and the first process of a new one
// is its init.
Result<void> RemoteSyscalls::Impl::check_children() const {
    CKPT_ASSIGN(uint64_t ours, read_namespace_id(getpid(), "pid"));
    for (const char* name : {"pid", "pid_for_children"}) {
        CKPT_ASSIGN(uint64_t its, read_namespace_id(tid_, name));
        if (its != ours)
            return fail(ErrorKind::kUnsupported, object(),
                        "its children live in another PID namespace");
    }
    return {};
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
        CKPT_ASSIGN(int status, unless_gone(next_stop(tid_, object())));
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
    if (std::exchange(suspended_, false))
        CKPT_TRY(ptrace_set_options(tid_, options()));
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

Result<void> RemoteSyscalls::with_helper(const HelperUse& use) {
    return impl_->with_helper(use);
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
