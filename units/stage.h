// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The way back: systemd starts the unit with the stage helper in the place of its program and so makes
// namespaces, cgroup, user, sandbox, credentials, journal stream and sockets; the engine rebuilds the
// forest beside the helper; then PID 1 is told who the main process is and the helper leaves.
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <sys/types.h>
#include <utility>
#include <vector>

#include "core/base/scoped_fd.h"
#include "core/base/steps.h"
#include "core/transaction/journal.h"
#include "units/resolve.h"
#include "units/scope.h"
#include "units/systemd.h"
#include "units/unit_stage.h"

namespace checkpointd {

// With this exit status the helper leaves when nobody came to it before its deadline.
inline constexpr int kNobodyCame = 75;

// How a restore drop-in is made.
struct StageOptions {
    // The installed helper.
    std::string helper = "/usr/libexec/checkpointd/stage";
    // After this long without a word from us the helper gives up by itself ...
    std::chrono::seconds helper_deadline{600};
    // ... by running the unit's own command (a cold start) or by leaving with an error.
    bool cold_start_on_deadline = false;
    // The unit has NoExecPaths=, so the helper must be allowed. StagedUnit finds that out by itself.
    bool needs_exec_path = false;
    // The unit has SystemCallFilter=, so what the helper calls must be allowed. Found out likewise.
    bool needs_calls = false;
    // The unit waits at its gate: the gate's line stays, and so do the ways in which systemd ends processes,
    // because a unit that fails must be told from one that was stopped. Set by StagedUnit::adopt().
    bool at_gate = false;
};

// Text of the drop-in that stages `facts`. `commands` is the unit's own ExecStart= of *now*, which the
// helper runs if a cold start is wanted.
std::string restore_drop_in(const UnitFacts& facts, const std::vector<ExecCommand>& commands,
                            const StageOptions& options);

// A unit that systemd has started with our helper in it. Everything is journaled first: whether start()
// fails, abandon() is called, the object is destroyed or the worker dies, the unit ends inactive, with no
// process, not failed, and without our drop-in (or, if it was adopted, by a cold start). Only a completed
// hand_over() keeps it.
class StagedUnit : public UnitStage {
  public:
    // Stages the inactive unit of `facts` (from the image). `systemd` and `journal` must outlive the
    // object. kConflict when the unit is not inactive; all other reasons come as typed errors.
    static Result<StagedUnit> start(Systemd& systemd, Journal& journal, const UnitFacts& facts,
                                    const StageOptions& options, Steps& steps, Deadline deadline);
    // Stages a unit that PID 1 has begun to start and that waits at its gate (gate.h). What has to be done
    // if it fails is in the journal already, as `cold_start_undo` (cold_start.h): a cold start in the same
    // start job. On failure that was done when this returns, with the error as the reason.
    static Result<StagedUnit> adopt(Systemd& systemd, Journal& journal, const UnitFacts& facts,
                                    StageOptions options, uint64_t cold_start_undo, Steps& steps,
                                    Deadline deadline);
    StagedUnit(StagedUnit&& other) noexcept;
    StagedUnit& operator=(StagedUnit&&) = delete;
    ~StagedUnit() override;

    pid_t helper_pid() const override { return helper_pid_; }
    int helper_pidfd() const override { return helper_pidfd_.get(); }
    int cgroup_fd() const override { return cgroup_fd_.get(); }
    const std::string& cgroup_dir() const override { return cgroup_dir_; }
    const std::vector<std::pair<std::string, ScopedFd>>& externals() const override { return externals_; }
    bool has_fresh_directories() const override { return true; }
    Result<uint64_t> undo_by_ending_all() override;

    // Makes `main_pid` (alive, a child of PID 1, in the unit's cgroup) the unit's main process and the
    // unit active; the helper leaves; `commit` lets the tasks run (BuiltForest::commit(): up to there they
    // are held, and die with us); the drop-in is removed. From its success on the unit is on its own. On
    // failure call abandon() or destroy the object, after the forest was dropped.
    // Should we die before `commit`, the tasks die with us, and the undo takes the unit off the stage while
    // the drop-in, still there, makes that a clean end: nothing of the image has run.
    Result<void> hand_over(pid_t main_pid, const std::function<Result<void>()>& commit, Steps& steps,
                           Deadline deadline) override;

    // Undoes everything; also done by the destructor.
    Result<void> abandon();

  private:
    StagedUnit(Systemd& systemd, Journal& journal, UnitFacts facts);
    Result<void> write_drop_in(const StageOptions& options, Steps& steps);
    Result<void> start_scope(Steps& steps, Deadline deadline);
    Result<void> start_unit(const StageOptions& options, Steps& steps, Deadline deadline);
    Result<void> lay_out(StageOptions options, Steps& steps, Deadline deadline);
    Result<void> open_gate(const ScopedFd& gate, Steps& steps);
    Result<void> wait_helper(const StageOptions& options, Steps& steps, Deadline deadline);
    Result<void> take_stage(Steps& steps);
    Result<std::optional<std::string>> end_of_start();
    Result<pid_t> find_helper(const StageOptions& options);
    Result<void> open_cgroup();
    Result<ScopedFd> take_listener(const UnitExternal& wanted, const std::vector<std::string>& names);
    Result<void> take_descriptors();
    Result<void> open_streams();
    Result<void> commit_to(pid_t main_pid, const std::function<Result<void>()>& commit);
    Result<void> announce(pid_t main_pid, Steps& steps, Deadline deadline);
    Result<void> dismiss_helper(Steps& steps, Deadline deadline);
    Result<void> wait_running(pid_t main_pid, Steps& steps, Deadline deadline);

    Systemd* systemd_;
    Journal* journal_;
    UnitFacts facts_;
    uint64_t drop_in_undo_ = 0;
    uint64_t unstage_undo_ = 0;
    uint64_t define_undo_ = 0;
    uint64_t cold_start_undo_ = 0;  // of an adopted unit, in the place of the two above
    ScopeHolder placeholder_;       // a scope's helper
    pid_t helper_pid_ = 0;
    ScopedFd helper_pidfd_;
    ScopedFd cgroup_fd_;
    std::string cgroup_;      // as systemd names it
    std::string cgroup_dir_;  // in the file system
    std::string start_job_;
    std::vector<std::pair<std::string, ScopedFd>> externals_;
};

}  // namespace checkpointd
