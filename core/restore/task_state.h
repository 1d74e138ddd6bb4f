// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What belongs to a task or a thread and is neither memory nor descriptor: on the way back.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/restore/forest_images.h"
#include "core/restore/host_facts.h"
#include "core/restore/program/plan.h"
#include "core/restore/restore.h"

namespace checkpointd {

struct ThreadState {
    pid_t pid;  // of the process
    pid_t tid;
    const images::core_entry& core;
    const std::string object;  // "pid 7 tid 9"
    const images::thread_extra_entry& extra;
};

// Emits into a thread's blob program, in the order in which they must run.
Result<void> plan_thread_basics(const ThreadState& thread, Program& program);  // TLS-near state, name
// `outside` gets what needs privileges on this machine, which a thread in a user namespace has not;
// none: the thread does all of it.
Result<void> plan_schedule(const ThreadState& thread, const HostFacts& facts, Program& program,
                           Program* outside);
Result<void> plan_pending_signals(const ThreadState& thread, PlannedTask& planned,
                                  Program& program);
// A thread's seccomp filters, oldest first, as indexes into `filters`.
Result<std::vector<int>> filter_chain(const images::thread_core_entry& core,
                                      const images::seccomp_entry& filters,
                                      const std::string& object);
// Filters are loaded while the tracer suspends them, before capabilities are given up. `flags` as for
// seccomp(2), besides those that the filters have.
Result<void> plan_filters(const std::string& object, std::span<const int> chain, unsigned flags,
                          const images::seccomp_entry& filters, Program& program);
Result<void> plan_ids(const ThreadState& thread, Program& program);
// `own`: capabilities that the thread has when it comes to this.
Result<void> plan_capabilities(const ThreadState& thread, uint64_t own, Program& program);

// Emits into the main thread's blob program.
Result<void> plan_signal_actions(const TaskRecord& task, PlannedTask& planned, Program& program);
Result<void> plan_shared_signals(const TaskRecord& task, PlannedTask& planned, Program& program);
Result<void> plan_timers(const TaskRecord& task, const HostFacts& facts, Program& program);
// Raises hard limits where they must be; in a user namespace that is no longer possible.
void plan_raised_limits(const TaskRecord& task, const HostFacts& facts, Program& program);
Result<void> plan_limits(const TaskRecord& task, const HostFacts& facts, Program& program);
Result<void> plan_process_flags(const TaskRecord& task, Program& program);

// Emits into the stage: what is set through /proc (OOM score, core dumps, login). `proc` is a descriptor
// of it.
void plan_proc_settings(const TaskRecord& task, const HostFacts& facts, Slot proc, Program& stage);
// Emits into the main thread's blob program, after its memory is complete: no new code from there on.
void plan_mdwe(const TaskRecord& task, Program& program);

// Whether the kernel itself acts on a signal. Not for SIGKILL and SIGSTOP.
bool has_default_action(const TaskRecord& task, int signal);
// The mask that a thread had, as PTRACE_SETSIGMASK takes it.
uint64_t signal_mask(const images::core_entry& core);

}  // namespace checkpointd
