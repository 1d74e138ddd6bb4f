// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <sys/types.h>

#include "core/base/error.h"
#include "core/transaction/journal.h"
#include "core/transaction/recorded_process.h"

namespace checkpointd {

// A traced thread that runs while all others of its forest stand, because a device's driver works in it. Its signals are
// blocked, but for those of its own faults, which a driver or a seccomp filter may mean to be handled: the kernel makes
// a blocked one deadly (force_sig_info_to_task() in kernel/signal.c). For the thread that traces it.
class LooseThread {
  public:
    // Lets it run, out of a ptrace-stop. Its own mask goes to the journal first, which is borrowed and may be null.
    static Result<LooseThread> let_run(pid_t pid, pid_t tid, Journal* journal);

    // Has it go on should it stand, as it does after any SIGCONT (ptrace_trap_notify() in kernel/signal.c): to be called
    // every now and then. A SIGSTOP is kept for its stop. kGone when it has ended.
    Result<void> keep_running();
    // It stands as if it had done so all the time, and has its own mask. kTimeout: it runs yet, or will stand later.
    Result<void> stop(std::chrono::steady_clock::time_point deadline);
    // It has been killed.
    Result<void> forget();

  private:
    LooseThread(pid_t pid, pid_t tid, uint64_t mask, Journal* journal) : pid_(pid), tid_(tid), mask_(mask), journal_(journal) {}
    // True once it stands in PTRACE_EVENT_STOP; other stops are seen to.
    Result<bool> look();
    Result<void> stand(std::chrono::steady_clock::time_point deadline);
    Result<void> pass_stop_on();
    static Result<void> give_back(const RecordedProcess& recorded, uint64_t mask);
    static Result<void> undo(const UndoArgs& args);
    friend void add_mask_undo_kind(UndoTable& table);

    pid_t pid_;
    pid_t tid_;
    uint64_t mask_;
    Journal* journal_;
    uint64_t record_ = 0;
    bool keeps_stop_ = false;
};

// Adds core.restore-mask: a thread that runs without its tracer gets its own mask back.
void add_mask_undo_kind(UndoTable& table);

}  // namespace checkpointd
