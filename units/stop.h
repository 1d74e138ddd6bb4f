// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The clean way down of mode "stop": the unit ends inactive and successful, nothing of it runs again.
#pragma once

#include <functional>
#include <string>

#include "core/base/steps.h"
#include "core/transaction/journal.h"
#include "units/resolve.h"
#include "units/systemd.h"

namespace checkpointd {

// Stops a unit whose tasks the engine holds in ptrace-stop, without any of its code running. In order:
//   prepare()   before the freeze: the drop-in that keeps systemd from running stop commands or a cold
//               copy. From here on the journal undoes it.
//   [engine: freeze, dump, image written; tasks held]
//   stop()      the point of no return; from here on the journal waits for PID 1's answer. On success the unit is inactive, Result=success, its cgroup empty.
//   finish()    removes the drop-in, reloads.
// Destroyed after prepare() and without finish() it undoes what it did: the unit is as before.
class CleanStop {
  public:
    // Both must outlive the object.
    CleanStop(Systemd& systemd, Journal& journal, UnitFacts facts);
    CleanStop(const CleanStop&) = delete;
    CleanStop& operator=(const CleanStop&) = delete;
    ~CleanStop();

    Result<void> prepare(Steps& steps);
    // `reap` is called once, when systemd has been told to kill the tasks: it must end them too
    // (HeldForest::kill()) and wait for the dead, because PID 1 hears of a traced child's death only
    // after its tracer has waited for it.
    Result<void> stop(Steps& steps, Deadline deadline, const std::function<Result<void>()>& reap);
    Result<void> finish(Steps& steps);
    // As the destructor, but says what went wrong.
    Result<void> cancel();

  private:
    Result<void> verify();

    Systemd& systemd_;
    Journal& journal_;
    UnitFacts facts_;
    uint64_t drop_in_undo_ = 0;
    uint64_t await_undo_ = 0;
};

// Text of the drop-in that prepare() writes.
std::string stop_drop_in(const UnitFacts& facts);

}  // namespace checkpointd
