// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Suspend in place: the unit stays active with a placeholder for its main process, and comes back from its
// image beside it. No job of systemd, no stop command, the same invocation, /tmp and RuntimeDirectory= kept.
// The way down, and the way up.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/scoped_fd.h"
#include "core/base/steps.h"
#include "core/transaction/journal.h"
#include "units/namespace_door.h"
#include "units/placeholder.h"
#include "units/resolve.h"
#include "units/systemd.h"
#include "units/unit_stage.h"

namespace checkpointd {

// Takes a unit's tasks away while PID 1 sees another main process. In order:
//   prepare()   before the freeze: lets PID 1 listen to us, where the unit does not allow it already.
//   [engine: freeze, dump, image written; tasks held]
//   put_placeholder()  a placeholder becomes the main process.
//   end_tasks() the point of no return.
//   finish()    the unit is as its files say, and has a gate. For an image that is ready.
// Destroyed before end_tasks() it undoes what it did: do so while the tasks are still held.
class Suspension {
  public:
    // Both must outlive the object.
    Suspension(Systemd& systemd, Journal& journal) : systemd_(systemd), journal_(journal) {}
    Suspension(const Suspension&) = delete;
    Suspension& operator=(const Suspension&) = delete;
    ~Suspension();

    Result<void> prepare(const UnitFacts& facts, Steps& steps);
    // `facts` as they are while the tasks stand still; `pids`: all processes of the unit. From here on the
    // journal undoes it: while the main process lives it becomes that again, and the placeholder ends. If
    // it is dead, all others die as well and the unit stays suspended.
    Result<void> put_placeholder(const UnitFacts& facts, const std::vector<pid_t>& pids,
                                 const std::string& image, Steps& steps, Deadline deadline);
    // `end` must end all tasks (HeldForest::kill()). Their numbers are then kept from others.
    Result<void> end_tasks(Steps& steps, Deadline deadline, const std::function<Result<void>()>& end);
    Result<void> finish(Steps& steps);
    // As the destructor, but says what went wrong.
    Result<void> cancel();

  private:
    Result<void> announce(Deadline deadline);

    Systemd& systemd_;
    Journal& journal_;
    UnitFacts facts_;
    uint64_t drop_in_undo_ = 0;
    uint64_t placeholder_undo_ = 0;
    std::optional<Placeholder> placeholder_;
};

// The place beside a placeholder, offered to a restore. Until hand_over() has come to its commit the unit
// stays suspended as it was, whatever happens.
class SuspendedUnit : public UnitStage {
  public:
    // `placeholder` is that of the unit of `facts` (from the image). `systemd` and `journal` must outlive
    // the object.
    static Result<std::unique_ptr<SuspendedUnit>> open(Systemd& systemd, Journal& journal,
                                                       const UnitFacts& facts, Placeholder placeholder,
                                                       Steps& steps, Deadline deadline);
    ~SuspendedUnit() override;

    pid_t helper_pid() const override { return placeholder_.pid(); }
    int helper_pidfd() const override { return door_ ? door_->pidfd() : placeholder_.pidfd(); }
    int cgroup_fd() const override { return cgroup_fd_.get(); }
    const std::string& cgroup_dir() const override { return cgroup_dir_; }
    const std::vector<std::pair<std::string, ScopedFd>>& externals() const override {
        return externals_;
    }
    bool has_fresh_directories() const override { return false; }
    Result<uint64_t> undo_by_ending_all() override;
    // The placeholder stays the main process until `commit` has succeeded: should we die before, nobody
    // notices; should we die after, the undo announces the restored one.
    Result<void> hand_over(pid_t main_pid, const std::function<Result<void>()>& commit, Steps& steps,
                           Deadline deadline) override;
    // Undoes everything; also done by the destructor.
    Result<void> abandon();

  private:
    SuspendedUnit(Systemd& systemd, Journal& journal, UnitFacts facts, Placeholder placeholder);
    Result<void> take_descriptors();

    Systemd& systemd_;
    Journal& journal_;
    UnitFacts facts_;
    Placeholder placeholder_;
    std::optional<NamespaceDoor> door_;  // of a unit with a user namespace
    uint64_t drop_in_undo_ = 0;
    uint64_t numbers_undo_ = 0;
    uint64_t hand_over_undo_ = 0;
    ScopedFd cgroup_fd_;
    std::string cgroup_;
    std::string cgroup_dir_;
    std::vector<std::pair<std::string, ScopedFd>> externals_;
};

// Adds units.take-back, units.hold-numbers, units.end-restored and units.finish-resume.
void add_suspend_undo_kinds(UndoTable& table);

}  // namespace checkpointd
