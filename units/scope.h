// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Scopes: processes that somebody else has started and systemd keeps together. They have no main process,
// no command and nothing that systemd opened for them.
#pragma once

#include <functional>
#include <string>
#include <sys/types.h>

#include "core/base/scoped_fd.h"
#include "core/base/steps.h"
#include "units/blockers.h"
#include "units/resolve.h"
#include "units/systemd.h"

namespace checkpointd {

// The facts of a scope. The oldest process stands for the main one.
Result<void> read_scope(Systemd& systemd, UnitFacts& facts);
Result<void> check_scope(Systemd& systemd, const UnitFacts& facts, Blockers& blockers);

// Ends all processes of the scope at once, by one write: whether we die before or after it, either all of
// them go on or none does. `reap` waits for the dead, which we trace. Returns when systemd has no such
// scope any more.
Result<void> end_scope(Systemd& systemd, const UnitFacts& facts, Steps& steps, Deadline deadline,
                       const std::function<Result<void>()>& reap);

// A process that does nothing and dies with us: systemd makes no scope without one.
class ScopeHolder {
  public:
    static Result<ScopeHolder> start();
    ScopeHolder() = default;
    ScopeHolder(ScopeHolder&& other) noexcept;
    ScopeHolder& operator=(ScopeHolder&& other) noexcept;
    ~ScopeHolder() { end(); }
    pid_t pid() const { return pid_; }
    void end();

  private:
    pid_t pid_ = 0;
};

// A new stream to the journal, for one that was opened by whoever started the processes.
Result<ScopedFd> open_journal_stream(const std::string& identifier);

}  // namespace checkpointd
