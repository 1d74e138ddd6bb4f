// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The undo journal: what lets a job die at any instant. A step that changes the target first writes down
// how to undo it; whoever finds the journal of a dead job runs what is written there. A job that fails
// while it lives takes the same way (`rollback`), so there is no second clean-up path to get wrong.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"

namespace checkpointd {

using UndoArgs = std::vector<std::string>;

// Runs one undo. Must be idempotent (it may be run again, or have nothing to do) and must check the
// identity of what it touches: PIDs and paths may have new owners by then.
using UndoAction = std::function<Result<void>(const UndoArgs& args)>;
// How long one may take at most; max(): nobody can say.
using UndoTime = std::function<std::chrono::microseconds(const UndoArgs& args)>;

// Sums of such times.
inline std::chrono::microseconds add_times(std::chrono::microseconds a, std::chrono::microseconds b) {
    return a > std::chrono::microseconds::max() - b ? std::chrono::microseconds::max() : a + b;
}

// The kinds of undo that the rooms of the house know. Filled once, then passed as a value: there is no
// global registry.
class UndoTable {
  public:
    // `kind` is a stable name "room.verb" ("units.remove-drop-in"); adding it twice keeps the first. `time`: of those
    // that may take long.
    void add(std::string kind, UndoAction action, UndoTime time = {});
    const UndoAction* find(std::string_view kind) const;
    // Nothing for those that take no time to speak of, and for kinds that are not here.
    std::chrono::microseconds time_of(std::string_view kind, const UndoArgs& args) const;

  private:
    struct Kind {
        UndoAction action;
        UndoTime time;
    };
    std::map<std::string, Kind, std::less<>> kinds_;
};

// One registered and not yet dropped undo.
struct UndoRecord {
    uint64_t id = 0;
    std::string kind;
    UndoArgs args;
};

// The journal of one job: a directory of its own (mode 0700, meant for /run, which a reboot empties as it
// empties everything that the records speak of) with one append-only file. A record is one write(2) of one
// line that ends in a checksum, so a torn line is recognised and ignored. While its job lives the file is
// locked (a POSIX record lock: not inherited by forked tasks, gone with the process).
class Journal {
  public:
    // Makes the directory and the journal; kConflict when it is there. `table` must outlive the journal.
    static Result<Journal> create(std::string directory, const UndoTable& table);

    // Runs what is left in `directory` by a dead job, newest first, and removes the directory. An undo that
    // fails stays in the journal, the others run nevertheless; the error carries all failures. Says whether
    // there was anything to undo; there is not when there is no such directory. May be called again at any
    // time, and by several at once: one does it, the others wait for it. kConflict when somebody still holds
    // the journal after `patience`: the job is alive.
    static Result<bool> replay(const std::string& directory, const UndoTable& table,
                               std::chrono::milliseconds patience = {});

    // How long the undos that may take long would take in replay(), one after the other; max(): nobody can say.
    static std::chrono::microseconds replay_time(const std::string& directory, const UndoTable& table);

    // What is pending in the file's text: every whole record not dropped later, oldest first.
    static std::vector<UndoRecord> parse(std::string_view text);

    Journal(Journal&&) = default;
    Journal& operator=(Journal&&) = default;
    // Does nothing: a journal that still has records is left for replay().
    ~Journal() = default;

    // Registers an undo. Call it *before* the step; the step may not be taken when this fails.
    Result<uint64_t> add(std::string_view kind, UndoArgs args);
    // The step is committed, or was undone by other means: forget its undo. Unknown ids are ignored.
    Result<void> drop(uint64_t id);
    // Runs the undo now and drops it when it succeeded.
    Result<void> undo(uint64_t id);
    // Undoes everything that is pending, newest first; goes on after a failure, which stays pending.
    Result<void> rollback();
    // Removes the journal. kInternal when records are pending.
    Result<void> close();

    // The same of rollback().
    std::chrono::microseconds rollback_time() const;

    bool empty() const { return pending_.empty(); }
    const std::string& directory() const { return directory_; }

  private:
    Journal(std::string directory, ScopedFd file, const UndoTable& table)
        : directory_(std::move(directory)), file_(std::move(file)), table_(&table) {}
    Result<void> append(std::string line);
    Result<void> run(const UndoRecord& record);

    std::string directory_;
    ScopedFd file_;
    const UndoTable* table_;
    std::map<uint64_t, UndoRecord> pending_;
    uint64_t next_id_ = 1;
};

}  // namespace checkpointd
