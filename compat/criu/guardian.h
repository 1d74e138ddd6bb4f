// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <sys/types.h>
#include <memory>
#include <optional>
#include <string>

#include "compat/criu/log.h"
#include "core/transaction/journal.h"

namespace checkpointd::criu {

// A journal, and a process that waits for our end to undo what is left in it: nobody else looks
// after a command that was killed, as PID 1 and the daemon do after a worker.
class Guardian {
  public:
    // Before there are threads. `plugin_directory`: of the plugins that will write into the
    // journal.
    static Result<std::unique_ptr<Guardian>> start(const std::string& plugin_directory,
                                                   const Log& log);
    Guardian(const Guardian&) = delete;
    Guardian& operator=(const Guardian&) = delete;
    ~Guardian();

    Journal& journal() { return *journal_; }
    // Undoes what is left. What cannot be undone stays in the journal, which the error names.
    Result<void> end();

  private:
    Guardian() = default;
    void dismiss();

    std::string home_ = "/run/checkpointd-criu.XXXXXX";
    UndoTable table_;
    std::optional<Journal> journal_;
    pid_t pid_ = 0;
};

}  // namespace checkpointd::criu
