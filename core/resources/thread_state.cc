// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/resources/thread_state.h"

#include <cerrno>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace checkpointd {
namespace {

// linux/membarrier.h; GET_REGISTRATIONS came with Linux 6.3.
constexpr unsigned kGetRegistrations = 1u << 9;
// Private expedited, and those with core serialisation and with rseq. Each registration is twice its
// command.
constexpr unsigned kCommands[] = {1u << 3, 1u << 5, 1u << 7};

bool refused(const Error& error) {
    return error.errno_code == EPERM || error.errno_code == EINVAL || error.errno_code == ENOSYS;
}

// A barrier succeeds only for a process that has registered for it, and does nothing else.
Result<uint32_t> try_each_barrier(RemoteSyscalls& remote) {
    uint32_t mask = 0;
    for (unsigned command : kCommands) {
        auto done = remote.call(SYS_membarrier, {command, 0, 0});
        if (done)
            mask |= command << 1;
        else if (!refused(done.error()))
            return tl::unexpected(std::move(done).error());
    }
    return mask;
}

Result<uint32_t> membarrier_registrations(RemoteSyscalls& remote) {
    auto mask = remote.call(SYS_membarrier, {kGetRegistrations, 0, 0});
    if (mask)
        return static_cast<uint32_t>(*mask);
    if (!refused(mask.error()))
        return tl::unexpected(std::move(mask).error());
    return try_each_barrier(remote);
}

}  // namespace

Result<void> dump_thread_pointers(const SeizedThread& thread, RemoteSyscalls& remote,
                                  images::core_entry& out) {
    images::thread_core_entry& core = *out.mutable_thread_core();
    uint64_t robust_list = 0;
    size_t length = 0;
    if (syscall(SYS_get_robust_list, thread.tid(), &robust_list, &length) < 0)
        return fail_errno(fmt::format("tid {}", thread.tid()), "cannot read the robust futex list");
    core.set_futex_rla(robust_list);
    core.set_futex_rla_len(static_cast<uint32_t>(length));
    uint64_t clear_tid = 0;
    CKPT_TRY(remote.call_out(SYS_prctl, {PR_GET_TID_ADDRESS, RemoteSyscalls::kOut}, clear_tid));
    out.mutable_thread_info()->set_clear_tid_addr(clear_tid);
    int death_signal = 0;
    CKPT_TRY(remote.call_out(SYS_prctl, {PR_GET_PDEATHSIG, RemoteSyscalls::kOut}, death_signal));
    if (death_signal)
        core.set_pdeath_sig(static_cast<uint32_t>(death_signal));
    CKPT_ASSIGN(auto rseq, thread.rseq());
    if (rseq && rseq->abi_pointer) {
        core.mutable_rseq_entry()->set_rseq_abi_pointer(rseq->abi_pointer);
        core.mutable_rseq_entry()->set_rseq_abi_size(rseq->abi_size);
        core.mutable_rseq_entry()->set_signature(rseq->signature);
    }
    return {};
}

Result<void> dump_process_flags(RemoteSyscalls& remote, images::task_core_entry& out) {
    CKPT_ASSIGN(uint32_t mask, membarrier_registrations(remote));
    if (mask)
        out.set_membarrier_registration_mask(mask);
    int subreaper = 0;
    CKPT_TRY(remote.call_out(SYS_prctl, {PR_GET_CHILD_SUBREAPER, RemoteSyscalls::kOut}, subreaper));
    out.set_child_subreaper(subreaper != 0);
    return {};
}

}  // namespace checkpointd
