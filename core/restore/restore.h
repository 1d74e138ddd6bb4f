// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <chrono>
#include <functional>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"
#include "core/base/steps.h"
#include "core/restore/program/plan.h"

namespace checkpointd {

class Plugins;

// Code that must run inside a task before its memory is replaced (plugins). It runs in the forked C++
// image of the task, single-threaded, after fork() of a threaded process: no allocation, no locks.
struct StageHook {
    pid_t pid = 0;              // the task it runs in; 0: each of them
    std::string name;           // for errors and `crctl explain`
    int (*run)(void* context);  // 0, or an errno value, which ends the restore
    void* context = nullptr;    // valid in the forked task, because its memory is a copy of ours
};

// What to restore and where. An immutable value; borrowed descriptors stay the caller's.
struct RestoreRequest {
    explicit RestoreRequest(Steps& watcher) : steps(watcher) {}

    int image_dir_fd = -1;

    // A pidfd of the process whose mount, uts, ipc, net and cgroup namespaces are joined where they
    // differ from ours, and whose user namespace the tasks enter. None: everything is restored in
    // our own namespaces.
    std::optional<int> namespaces_of_pidfd;

    // The tasks are born in the PID namespace of that process too, in which nobody but its init lives: whoever
    // has their numbers outside is in nobody's way. Roots have no parent then that they could see.
    bool in_pid_namespace = false;

    // Only to be planned: namespaces are taken to be as the image needs them.
    bool imagined_namespaces = false;

    // cgroup2 directory in which the tasks are born (CLONE_INTO_CGROUP), or -1 for our own. Tasks that were
    // in a cgroup below the dumped one go to the one of that name below this, which the caller has made.
    int cgroup_fd = -1;

    // Descriptor keys ("socket:[1234]", "file[mnt:ino]") to our descriptor that takes its place.
    std::map<std::string, int> externals;

    enum class Parent {
        kSibling,  // roots become children of our parent (PID 1 for a worker), by CLONE_PARENT
        kChild,    // roots become children of the calling thread
    };
    Parent parent = Parent::kChild;

    // Make a time namespace in which CLOCK_MONOTONIC and CLOCK_BOOTTIME go on from the image's.
    bool time_namespace = true;
    // Whether these clocks may be behind ours, as they are after a pause in the same boot. Otherwise they
    // jump ahead to ours where they would be.
    bool clocks_may_lag = true;

    // Tasks whose session or group leader is not in the image join ours instead of getting a
    // temporary leader (a job that was started from a shell).
    bool shell_job = false;

    std::vector<StageHook> hooks;

    // What brings devices back; opened for this image. Borrowed, null: nothing does.
    Plugins* plugins = nullptr;

    // Called when all memory was read, of tasks and of devices, and nothing runs by it yet: an error ends the restore.
    // Empty: nobody judges what was read.
    std::function<Result<void>()> check_memory;

    // By when everything must stand at its last barrier; then it fails with kTimeout like any other step.
    // Unset: never.
    std::optional<std::chrono::steady_clock::time_point> deadline;

    Steps& steps;
};

struct RestoreStats {
    uint64_t tasks = 0;
    uint64_t threads = 0;        // including main threads
    uint64_t operations = 0;     // in all programs
    uint64_t bytes_read = 0;     // memory contents, from pages images
    uint64_t read_us = 0;        // reading images and planning
    uint64_t build_us = 0;       // from the first fork until the last task stands at its last barrier
};

// One thread as it will be set when the programs have run: what cannot be done from inside.
struct PlannedThread {
    pid_t tid = 0;
    std::vector<std::byte> registers;  // user_regs_struct
    std::vector<std::byte> xstate;     // an XSAVE area in standard format
    uint64_t signal_mask = 0;
    uint64_t rseq = 0;     // restartable sequence area, and the sequence it was in: written back last,
    uint64_t rseq_cs = 0;  // because the kernel forgets it while other code runs
};

struct PlannedTask {
    pid_t pid = 0;
    std::string name;
    bool zombie = false;
    int stop_signal = 0;   // job control: stopped again by it at commit; 0: runs
    int exit_status = 0;   // of a zombie, as wait(2) reports it
    uint32_t stage_program = 0;
    std::vector<PlannedThread> threads;  // main thread first; empty for a zombie
    std::vector<int> late_signals;       // pending signals that only we can send (SIGSTOP, SIGTRAP)
    std::optional<ArenaRef> trap_action;  // kernel sigaction of SIGTRAP where it is not the default
};

// Everything that a restore will do. Data only; made by plan_restore(), printed by print_plan(), run
// by build_forest().
struct RestorePlan {
    Plan programs;
    uint32_t agent_program = 0;
    uint32_t outside_program = 0;  // run by ourselves when all stand at the barrier kThreadsReady
    std::vector<PlannedTask> tasks;
    std::vector<pid_t> roots;     // tasks whose parent is not restored; the main process is the first
    std::vector<pid_t> helpers;   // temporary session and group leaders
    bool own_pid_namespace = false;  // all these numbers are those inside of it
    uint64_t region_base = 0;     // where programs, arena and blob will lie in every task
    uint64_t region_size = 0;
    uint32_t stacks = 1;            // blob stacks: threads of the task that has most
    uint32_t descriptor_floor = 0;  // first descriptor number that no task uses
    uint64_t memory_bytes = 0;      // that READ_PAGES will read
};

// Restored and held: every thread stands in ptrace-stop, traced by the thread that called
// build_forest(), which is the only one that may use or destroy this object. If we die, they die.
class BuiltForest {
  public:
    class Held;  // defined in core/restore/executor
    explicit BuiltForest(std::unique_ptr<Held> held);
    BuiltForest(BuiltForest&&) noexcept;
    BuiltForest& operator=(BuiltForest&&) noexcept;
    // Kills and reaps everything that was not committed.
    ~BuiltForest();

    // Every restored task, zombies included, as our PID namespace numbers them.
    const std::vector<pid_t>& pids() const;
    pid_t main_pid() const;
    // Tasks whose parent is not restored, as the image numbers them.
    const std::vector<pid_t>& roots() const;
    // Lets them go: they run and live on without us. Called once.
    Result<void> commit();

  private:
    std::unique_ptr<Held> held_;
};

// Names of the plugins that an image needs; none where it is silent about plugins.
Result<std::optional<std::vector<std::string>>> plugins_of_image(int image_dir_fd);

// Reads the images and computes what would be done. Changes nothing. Everything that cannot be restored
// is answered at once as the causes of one error (kUnsupported, kBadImage).
Result<std::unique_ptr<RestorePlan>> plan_restore(const RestoreRequest& request);

// kConflict, naming the holders, if a PID or TID of the plan is taken as such, or as the number of a
// session or group of somebody else. The dead are waited for, up to two seconds: init reaps orphans in its
// own time, and a restore may follow a checkpoint closely.
Result<void> check_conflicts(const RestorePlan& plan);

// The plan as text, one operation per line.
std::string print_plan(const RestorePlan& plan);

// Plans and builds. On failure nothing is left: no process, no file, no namespace. Taken PIDs are
// answered with kConflict before anything starts.
Result<BuiltForest> build_forest(const RestoreRequest& request, RestoreStats& stats);

// Runs a plan made by plan_restore() for the same request.
Result<BuiltForest> execute_plan(const RestoreRequest& request,
                                 std::shared_ptr<const RestorePlan> plan, RestoreStats& stats);

}  // namespace checkpointd
