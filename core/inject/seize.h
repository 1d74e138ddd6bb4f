// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Stops every thread of a forest of processes, and lets them go as if nothing had happened.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <sys/types.h>
#include <sys/user.h>
#include <vector>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "core/base/steps.h"
#include "core/inject/loose_thread.h"
#include "core/kernel/ptrace.h"

namespace checkpointd {

// One thread in ptrace-stop. The accessors ask the kernel each time; errors are kGone when it died.
class SeizedThread {
  public:
    SeizedThread(pid_t tid, const user_regs_struct& regs) : tid_(tid), regs_(regs) {}

    pid_t tid() const { return tid_; }
    // As at the stop, whatever is injected meanwhile. A wait that the kernel cannot restart by itself
    // (epoll_wait and a few others answer EINTR to any wake-up) has been turned into one that is
    // restarted, and a thread inside an rseq critical section stands at its abort address.
    const user_regs_struct& regs() const { return regs_; }
    // The signal mask outside of any temporary one; see ptrace_get_sigmask.
    uint64_t signal_mask() const { return signal_mask_; }

    Result<std::vector<std::byte>> xstate() const { return ptrace_get_xstate(tid_); }
    Result<std::vector<siginfo_t>> pending() const { return ptrace_pending_signals(tid_, false); }
    Result<std::vector<siginfo_t>> shared_pending() const { return ptrace_pending_signals(tid_, true); }
    Result<std::optional<RseqConfiguration>> rseq() const { return ptrace_get_rseq(tid_); }
    // 0 none, 1 strict, 2 filter: "Seccomp:" of its /proc status.
    Result<int> seccomp_mode() const;
    // The oldest filter first, that is in the order of installation. Empty where there is none.
    Result<std::vector<std::vector<sock_filter>>> seccomp_filters() const;

  private:
    friend class Seizer;
    pid_t tid_;
    user_regs_struct regs_;
    uint64_t signal_mask_ = 0;
};

// One process of the forest. A zombie has no threads, pidfd or memory.
struct SeizedProcess {
    pid_t pid = 0;
    pid_t parent = 0;
    ScopedFd pidfd;
    ScopedFd mem;  // /proc/PID/mem, read and write
    bool zombie = false;
    // The leader called pthread_exit() and its other threads live on: `threads` lacks `pid`.
    bool leader_exited = false;
    // Stopped by job control before we came (SIGSTOP, SIGTSTP, ...); 0 if not. It will be afterwards as well.
    int stop_signal = 0;
    std::vector<SeizedThread> threads;  // the leader first, then ascending

    // Where remote system calls found room last; only they use it. 0: not looked for yet.
    struct RoomFound {
        uint64_t stub[3] = {};  // by StubPlace
        uint64_t scratch = 0;
    } room;

    // Through /proc/PID/mem, whatever the protection of the mapping. All bytes or an error.
    Result<void> read_memory(uint64_t address, void* into, size_t size) const;
    Result<void> write_memory(uint64_t address, const void* from, size_t size) const;
    // The thread that remote system calls of the process as a whole should run in. Not for zombies.
    SeizedThread& main_thread() { return threads.front(); }
    const SeizedThread& main_thread() const { return threads.front(); }
};

struct SeizeOptions {
    // How long all may take to stand still. After kTimeout a thread that never stopped stays traced, and would
    // stop later, until the calling thread ends: it should soon.
    std::chrono::milliseconds timeout{10000};
    // Asked before "checkpoint.freeze" and "checkpoint.seize"; may be null.
    Steps* steps = nullptr;
    // A process of the cgroup that is not of the forest; 0: none.
    pid_t spared = 0;
    // Asked when a cgroup is about to be frozen; may be empty. An error ends it there.
    std::function<Result<void>()> before_freeze;
};

// Every thread of a forest stands in ptrace-stop (PTRACE_EVENT_STOP, nothing of ours in it) while this lives.
// The thread that made it is the tracer: it alone may use it. The tracer's death lets everything run
// on: there is no EXITKILL. Destruction releases.
class SeizedForest {
  public:
    // The whole cgroup (absolute path) and what is below it: frozen, seized, thawed.
    static Result<SeizedForest> seize_cgroup(const std::string& path, const SeizeOptions& options = {});
    // A process and its descendants.
    static Result<SeizedForest> seize_tree(pid_t root, const SeizeOptions& options = {});

    SeizedForest(SeizedForest&&) noexcept = default;
    SeizedForest& operator=(SeizedForest&& other) noexcept;
    ~SeizedForest();

    // Parents before children.
    std::vector<SeizedProcess>& processes() { return processes_; }
    const std::vector<SeizedProcess>& processes() const { return processes_; }
    SeizedProcess* find(pid_t pid);

    // One thread runs while all others stand, because a device's driver works in it (core/inject/loose_thread.h; with
    // `journal`, borrowed and perhaps null). Again for one that runs: LooseThread::keep_running(). stop_again() has it
    // stand as if it had done so all the time: registers are those of then, kTimeout if it does not stop.
    Result<void> let_run(pid_t pid, pid_t tid, Journal* journal);
    Result<void> stop_again(pid_t pid, pid_t tid, std::chrono::steady_clock::time_point deadline);
    // kUnsupported where a process in which one ran has got others, which do not stand.
    Result<void> check_threads() const;

    // Lets everything go on. A process that died meanwhile is no error. Empty afterwards. kTimeout: a thread that ran
    // for its driver does not stop; see SeizeOptions::timeout.
    Result<void> release();
    // SIGKILL to all; returns when every process is dead (perhaps still a zombie of its parent).
    Result<void> kill_all();
    // SIGSTOP to all, then released: they stand still under job control (--leave-stopped).
    Result<void> release_stopped();

  private:
    friend class Seizer;
    SeizedForest() = default;
    Result<SeizedThread*> find_thread(pid_t pid, pid_t tid);
    Result<void> release_loose();
    Result<void> forget_loose();
    std::vector<SeizedProcess> processes_;
    std::map<pid_t, LooseThread> loose_;  // by TID
    std::set<pid_t> have_run_;            // PIDs in which any was
};

// A process and its descendants, as they are now.
Result<std::vector<pid_t>> read_process_tree(pid_t root);

}  // namespace checkpointd
