// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <sys/types.h>
#include <sys/user.h>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>

#include "core/base/error.h"
#include "core/base/steps.h"
#include "core/inject/loose_thread.h"
#include "core/restore/executor/steering.h"
#include "core/restore/executor/task_numbers.h"
#include "core/restore/restore.h"

namespace checkpointd {

// Follows everything that comes out of the agent, by ptrace, from the one thread that made it. Kills
// and reaps all of it when destroyed, unless let go. The kernel tells it numbers as we see them, the plan
// has those of the image.
class Tracer {
  public:
    explicit Tracer(const RestorePlan& plan);
    Tracer(const Tracer&) = delete;
    Tracer& operator=(const Tracer&) = delete;
    ~Tracer();

    // Attaches to the agent, which waits for it; all descendants follow.
    Result<void> seize_agent(pid_t agent);
    // Runs the programs from barrier to barrier until every living thread stands at kFinished. When
    // all have come to a barrier, and before any goes on, `at_barrier` does what is done from
    // outside.
    Result<void> run(Steps& steps, const std::function<Result<void>(uint64_t)>& at_barrier);
    // For an operation that failed with this errno; `object` where the operation names none.
    Error operation_error(const std::string& object, uint64_t program, uint64_t op, int code) const;
    // Checks that exactly the planned threads live, and zombies are zombies.
    Result<void> check_complete() const;
    // One system call in a stopped thread at `instruction`, which may vanish by it.
    Result<int64_t> remote_call(pid_t tid, uint64_t instruction, long nr,
                                const std::array<uint64_t, 6>& args);
    // One thread runs while all others stand (core/inject/loose_thread.h), and stands again. What it makes meanwhile is
    // not followed. Again for one that runs: LooseThread::keep_running().
    Result<void> let_run(pid_t pid, pid_t tid);
    Result<void> stop_again(pid_t tid, std::chrono::steady_clock::time_point deadline);
    // Kills what is there, so that whoever waits for it sees ends instead. From any thread.
    void kill_now();
    // As we see the thread that the plan calls `id`.
    pid_t number_here(pid_t id) const { return numbers_.outer(id); }
    // Detaches everything; nothing is left to kill.
    Result<void> let_go();

  private:
    struct Tracee {
        bool stopped = false;
        uint64_t barrier = 0;
        uint64_t waiting = 0;     // at kPluginFilesAgain: files that wait for others
        uint64_t first_file = 0;  // of them
        pid_t wants = 0;    // number that the thread which it makes next must get
        bool told = false;  // its maker told us of it
    };

    Result<void> wait_for_event();
    Result<pid_t> next_waitable();
    Result<void> handle(pid_t id, int status);
    Result<void> handle_end(pid_t id, int status);
    Result<void> handle_stop(pid_t id, int status);
    Result<void> handle_trap(pid_t id);
    Result<void> handle_signal(pid_t id, int signal);
    Result<void> handle_birth(pid_t maker);
    Result<void> release_lowest(Steps& steps,
                                const std::function<Result<void>(uint64_t)>& at_barrier);
    Result<void> check_progress();
    Result<bool> serve_one_number(Steps& steps);
    Result<int64_t> finish_remote_call(pid_t tid);
    Result<void> until_syscall_stop(pid_t tid);
    Result<int> reap_or_stop(pid_t id);
    void add(pid_t id);
    bool all_stopped() const;
    bool is_ours(pid_t id) const;
    bool may_end(pid_t id) const;
    std::string name_of(pid_t id) const;
    void kill_all();
    void find_untold();

    const RestorePlan& plan_;
    TaskNumbers numbers_;
    std::map<pid_t, const PlannedTask*> zombies_;  // these three by the plan's numbers
    std::set<pid_t> helpers_;
    std::set<pid_t> ended_zombies_;
    std::set<pid_t> ended_untold_;  // before their makers told us of them
    NumberSteering steering_;
    bool has_steered_ = false;
    std::optional<uint64_t> waiting_;  // files of plugins, in the round before
    std::map<pid_t, LooseThread> loose_;
    pid_t aimed_at_ = 0;
    std::map<pid_t, Tracee> tracees_;
    std::mutex lock_;  // while who is in tracees_ changes: then every number in it is ours
    pid_t agent_ = -1;
    bool released_ = false;
};

// Continues a stopped tracee; its death meanwhile is not an error (the wait will tell).
Result<void> resume(pid_t id, int signal = 0);

}  // namespace checkpointd
