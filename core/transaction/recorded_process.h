// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <sys/types.h>

#include "core/transaction/journal.h"

namespace checkpointd {

// A process by its PID and start time, as two arguments of an undo hold it. 0 0: no process.
struct RecordedProcess {
    pid_t pid = 0;
    uint64_t start = 0;

    // Appends the two arguments of a process that is there.
    static Result<void> append(UndoArgs& args, pid_t pid);
    // Of args[at] and args[at + 1]. kInternal when they are no such thing.
    static Result<RecordedProcess> parse(const UndoArgs& args, size_t at);
    // process_lives() of it.
    Result<bool> lives() const;
};

}  // namespace checkpointd
