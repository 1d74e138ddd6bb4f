// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/checkpoint/task_dump.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/arch/x86_64/thread_image.h"
#include "core/base/io.h"
#include "core/inject/remote_syscalls.h"
#include "core/kernel/proc_task.h"
#include "core/kernel/proc_text.h"
#include "core/kernel/same_cpu.h"
#include "core/resources/credentials.h"
#include "core/resources/resource_limits.h"
#include "core/resources/scheduling.h"
#include "core/resources/signals.h"
#include "core/resources/thread_state.h"
#include "core/resources/timers.h"
#include "images/constants.h"

namespace checkpointd {
namespace {

constexpr int kGetMdwe = 66;  // PR_GET_MDWE of Linux 6.3

Result<std::string> read_proc(pid_t pid, std::string_view name) {
    CKPT_ASSIGN(std::string text, read_file(AT_FDCWD, fmt::format("/proc/{}/{}", pid, name)));
    return std::string(trim(text));
}

// A file that a kernel may be built without.
Result<std::optional<std::string>> read_optional(pid_t pid, std::string_view name) {
    auto text = read_proc(pid, name);
    if (text)
        return std::optional(std::move(*text));
    if (text.error().errno_code == ENOENT)
        return std::optional<std::string>{};
    return tl::unexpected(std::move(text).error());
}

// Protocol buffers want UTF-8 in strings; a name may hold any bytes. The format has `string` there, and
// the lite runtime does not check.
void set_name(const std::string& comm, images::task_core_entry& out) { out.set_comm(comm); }

Result<void> observe_process(const SeizedProcess& process, const ProcStat& stat,
                             images::task_core_entry& out) {
    set_name(stat.comm, out);
    out.set_task_state(process.stop_signal ? images::kTaskStopped : images::kTaskAlive);
    if (process.stop_signal)
        out.set_stop_signo(static_cast<uint32_t>(process.stop_signal));
    out.set_exit_code(0);
    out.set_flags(stat.flags);
    CKPT_ASSIGN(std::string personality, read_proc(process.pid, "personality"));
    out.set_personality(to_number<uint32_t>(personality, 16).value_or(0));
    out.set_blk_sigset(process.main_thread().signal_mask());
    CKPT_TRY(dump_limits(process.pid, *out.mutable_rlimits()));
    CKPT_ASSIGN(auto queue, process.main_thread().shared_pending());
    dump_signal_queue(queue, *out.mutable_signals_s());
    CKPT_ASSIGN(auto login, read_optional(process.pid, "loginuid"));
    if (login)
        out.set_loginuid(to_number<uint32_t>(*login).value_or(~0u));
    CKPT_ASSIGN(auto oom, read_optional(process.pid, "oom_score_adj"));
    if (oom)
        out.set_oom_score_adj(to_number<int32_t>(*oom).value_or(0));
    return {};
}

Result<void> observe_thread(const SeizedProcess& process, const SeizedThread& thread,
                            TaskDumpContext& context, images::core_entry& out,
                            images::thread_extra_entry& extra) {
    out.set_mtype(images::core_entry::X86_64);
    CKPT_ASSIGN(auto xstate, thread.xstate());
    CKPT_TRY(dump_registers(thread.regs(), xstate, *out.mutable_thread_info()));
    CKPT_TRY(dump_segments(thread.tid(), *out.mutable_thread_info()));
    images::thread_core_entry& core = *out.mutable_thread_core();
    core.set_blk_sigset(thread.signal_mask());
    CKPT_ASSIGN(auto queue, thread.pending());
    dump_signal_queue(queue, *core.mutable_signals_p());
    auto scheduling = dump_scheduling(thread.tid(), core);
    if (!scheduling && scheduling.error().kind == ErrorKind::kUnsupported)
        context.blockers.push_back(std::move(scheduling).error());
    else if (!scheduling)
        return scheduling;
    CKPT_TRY(context.seccomp.dump(thread, core));
    core.set_cg_set(1);
    CKPT_ASSIGN(ProcStat stat, read_stat(thread.tid()));
    core.set_comm(stat.comm);
    extra.set_tid(static_cast<uint32_t>(context.pids.image_pid(thread.tid())));
    extra.set_xstate(xstate.data(), xstate.size());
    (void)process;
    return dump_scheduling_extra(thread.tid(), extra);
}

Result<void> observe_extra(const SeizedProcess& process, const ProcStat& stat,
                           TaskDumpContext& context, images::process_extra_entry& out) {
    out.set_pid(static_cast<uint32_t>(context.pids.image_pid(process.pid)));
    CKPT_ASSIGN(auto cgroup, read_cgroup2_path(process.pid));
    if (context.cgroup && cgroup && cgroup->starts_with(*context.cgroup))
        out.set_cgroup(*context.cgroup == "/" ? *cgroup : cgroup->substr(context.cgroup->size()));
    CKPT_ASSIGN(auto filter, read_optional(process.pid, "coredump_filter"));
    if (filter && !filter->empty())
        out.set_coredump_filter(to_number<uint32_t>(*filter, 16).value_or(0));
    out.set_start_time(stat.start_time * (1000000000u / static_cast<uint64_t>(sysconf(_SC_CLK_TCK))));
    CKPT_ASSIGN(TimeOffsets offsets, read_time_offsets(process.pid));
    out.set_monotonic_offset_ns(offsets.monotonic);
    out.set_boottime_offset_ns(offsets.boottime);
    return {};
}

// Group and session as the forest's namespace numbers them.
Result<void> observe_tree(const SeizedProcess& process, const ProcStat& stat,
                          const ProcStatus& status, TaskDumpContext& context,
                          images::pstree_entry& out) {
    out.set_pid(static_cast<uint32_t>(context.pids.image_pid(process.pid)));
    out.set_ppid(static_cast<uint32_t>(context.pids.image_pid(process.parent)));
    pid_t group = status.ns_pgids.empty() ? stat.pgrp : status.ns_pgids.back();
    pid_t session = status.ns_sids.empty() ? stat.session : status.ns_sids.back();
    out.set_pgid(static_cast<uint32_t>(group));
    out.set_sid(static_cast<uint32_t>(session));
    if (process.zombie)
        out.add_threads(out.pid());
    for (const SeizedThread& thread : process.threads)
        out.add_threads(static_cast<uint32_t>(context.pids.image_pid(thread.tid())));
    return {};
}

Result<void> ask_thread(SeizedProcess& process, SeizedThread& thread, RemoteSyscalls& remote,
                        images::core_entry& out) {
    CKPT_TRY(dump_thread_pointers(thread, remote, out));
    CKPT_TRY(dump_signal_stack(remote, *out.mutable_thread_core()->mutable_sas()));
    CKPT_ASSIGN(ProcStatus status, read_thread_status(process.pid, thread.tid()));
    return dump_credentials(status, remote, *out.mutable_thread_core()->mutable_creds());
}

Result<void> ask_process(SeizedProcess& process, RemoteSyscalls& remote, TaskDumpContext& context,
                         TaskImages& out) {
    CKPT_ASSIGN(ProcStatus status, read_status(process.pid));
    images::task_core_entry& core = *out.cores.front().mutable_tc();
    CKPT_TRY(dump_signal_actions(status, remote, core));
    auto image_tid = [&context](pid_t tid) { return context.pids.image_pid(tid); };
    CKPT_TRY(dump_timers(process.pid, image_tid, remote, *core.mutable_timers()));
    CKPT_TRY(dump_process_flags(remote, core));
    CKPT_TRY(ask_address_space(remote, out.memory.mm));
    auto mdwe = remote.call(SYS_prctl, {kGetMdwe, 0, 0, 0, 0});
    if (mdwe && *mdwe)
        out.extra.set_mdwe(static_cast<uint32_t>(*mdwe));
    return {};
}

}  // namespace

void PidMap::add(const ProcStatus& status) {
    pids_[status.pid] = status.ns_pids.empty() ? status.pid : status.ns_pids.back();
}

pid_t PidMap::image_pid(pid_t pid) const {
    auto found = pids_.find(pid);
    return found == pids_.end() ? 0 : found->second;
}

Result<void> observe_task(const SeizedProcess& process, TaskDumpContext& context, TaskImages& out) {
    out.pid = process.pid;
    out.image_pid = context.pids.image_pid(process.pid);
    out.mem_fd = process.mem.get();
    CKPT_ASSIGN(ProcStat stat, read_stat(process.pid));
    CKPT_ASSIGN(ProcStatus status, read_status(process.pid));
    CKPT_TRY(observe_tree(process, stat, status, context, out.tree));
    CKPT_TRY(observe_extra(process, stat, context, out.extra));
    for (const SeizedThread& thread : process.threads) {
        images::core_entry& core = out.cores.emplace_back();
        CKPT_TRY(observe_thread(process, thread, context, core, *out.extra.add_threads()));
    }
    CKPT_TRY(observe_process(process, stat, *out.cores.front().mutable_tc()));
    CKPT_ASSIGN(out.memory, dump_address_space(process, stat, context.memory));
    if (out.memory.auxv.size() > static_cast<size_t>(out.memory.mm.mm_saved_auxv_size()))
        for (uint64_t word : out.memory.auxv)
            out.extra.add_auxv(word);
    return {};
}

Result<void> ask_task(SeizedProcess& process, TaskDumpContext& context, TaskImages& out) {
    for (size_t i = 0; i < process.threads.size(); ++i) {
        SeizedThread& thread = process.threads[i];
        const SameCpu beside(thread.tid());
        CKPT_ASSIGN(RemoteSyscalls remote, RemoteSyscalls::open(process, thread));
        CKPT_TRY(ask_thread(process, thread, remote, out.cores[i]));
        if (i == 0)
            CKPT_TRY(ask_process(process, remote, context, out));
        CKPT_TRY(remote.close());
    }
    return {};
}

Result<void> observe_zombie(const SeizedProcess& process, TaskDumpContext& context, TaskImages& out) {
    out.pid = process.pid;
    out.image_pid = context.pids.image_pid(process.pid);
    out.zombie = true;
    CKPT_ASSIGN(ProcStat stat, read_stat(process.pid));
    CKPT_ASSIGN(ProcStatus status, read_status(process.pid));
    CKPT_TRY(observe_tree(process, stat, status, context, out.tree));
    images::core_entry& core = out.cores.emplace_back();
    core.set_mtype(images::core_entry::X86_64);
    images::task_core_entry& task = *core.mutable_tc();
    task.set_task_state(images::kTaskDead);
    task.set_exit_code(stat.exit_code);
    task.set_personality(0);
    task.set_flags(0);
    task.set_blk_sigset(0);
    set_name(stat.comm, task);
    return {};
}

}  // namespace checkpointd
