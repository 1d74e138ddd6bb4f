// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/resources/signals.h"

#include <sys/syscall.h>

namespace checkpointd {
namespace {

// struct sigaction as rt_sigaction(2) has it on x86_64; glibc's differs.
struct KernelAction {
    uint64_t handler;
    uint64_t flags;
    uint64_t restorer;
    uint64_t mask;
};
constexpr int kSignals = 64;

bool worth_asking(int signal, const ProcStatus& status) {
    uint64_t bit = uint64_t{1} << (signal - 1);
    return signal == SIGCHLD || ((status.sig_caught | status.sig_ignored) & bit);
}

}  // namespace

Result<void> dump_signal_actions(const ProcStatus& status, RemoteSyscalls& remote,
                                 images::task_core_entry& out) {
    for (int signal = 1; signal <= kSignals; ++signal) {
        if (signal == SIGKILL || signal == SIGSTOP)
            continue;
        KernelAction action{};
        if (worth_asking(signal, status)) {
            auto asked = remote.call_out(
                SYS_rt_sigaction, {signal, 0, RemoteSyscalls::kOut, sizeof(action.mask)}, action);
            if (!asked)
                return tl::unexpected(std::move(asked).error());
        }
        images::sa_entry& entry = *out.add_sigactions();
        entry.set_sigaction(action.handler);
        entry.set_flags(action.flags);
        entry.set_restorer(action.restorer);
        entry.set_mask(action.mask);
        entry.set_compat_sigaction(false);
    }
    return {};
}

void dump_signal_queue(const std::vector<siginfo_t>& queue, images::signal_queue_entry& out) {
    for (const siginfo_t& info : queue)
        out.add_signals()->set_siginfo(&info, sizeof(info));
}

Result<void> dump_signal_stack(RemoteSyscalls& remote, images::thread_sas_entry& out) {
    stack_t stack{};
    CKPT_TRY(remote.call_out(SYS_sigaltstack, {0, RemoteSyscalls::kOut}, stack));
    out.set_ss_sp(reinterpret_cast<uint64_t>(stack.ss_sp));
    out.set_ss_size(stack.ss_size);
    out.set_ss_flags(static_cast<uint32_t>(stack.ss_flags));
    return {};
}

}  // namespace checkpointd
