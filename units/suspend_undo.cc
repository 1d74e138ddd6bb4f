// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/suspend_undo.h"

#include <chrono>

#include "core/transaction/recorded_process.h"
#include "core/transaction/undo_kinds.h"
#include "units/placeholder.h"
#include "units/suspend.h"
#include "units/systemd.h"
#include "units/unit_process.h"

namespace checkpointd {
namespace {

constexpr const char* kTakeBack = "units.take-back";
constexpr const char* kHoldNumbers = "units.hold-numbers";
constexpr const char* kEndRestored = "units.end-restored";
constexpr const char* kFinishResume = "units.finish-resume";
constexpr auto kPatience = std::chrono::seconds(30);

Deadline soon() {
    return std::chrono::steady_clock::now() + kPatience;
}

// PLACEHOLDER, its START, MAIN PID, its START (0 0: not known), UNIT, CGROUP DIRECTORY, STATUS.
struct RecordedPair {
    RecordedProcess placeholder, main;
    std::string unit, cgroup_dir, status;
};

Result<RecordedPair> parse_pair(const UndoArgs& args) {
    if (args.size() != 7)
        return fail(ErrorKind::kInternal, "undo", "wrong arguments in the journal");
    CKPT_ASSIGN(RecordedProcess placeholder, RecordedProcess::parse(args, 0));
    CKPT_ASSIGN(RecordedProcess main, RecordedProcess::parse(args, 2));
    return RecordedPair{placeholder, main, args[4], args[5], args[6]};
}

Result<uint64_t> add_pair(Journal& journal, const char* kind, const PlaceholderPair& pair) {
    UndoArgs args;
    CKPT_TRY(RecordedProcess::append(args, pair.placeholder));
    if (pair.main_pid != 0)
        CKPT_TRY(RecordedProcess::append(args, pair.main_pid));
    else
        args.insert(args.end(), {"0", "0"});
    args.insert(args.end(), {pair.unit, pair.cgroup_dir, pair.status});
    return journal.add(kind, std::move(args));
}

Result<bool> is_main(Systemd& systemd, const RecordedPair& pair, const RecordedProcess& process) {
    CKPT_ASSIGN(uint64_t now, systemd.number(pair.unit, "Service", "MainPID"));
    return now == static_cast<uint64_t>(process.pid);
}

// Where the placeholder is the main process, the other one becomes it.
Result<void> announce_main(Systemd& systemd, const RecordedPair& pair) {
    CKPT_ASSIGN(bool stands_in, is_main(systemd, pair, pair.placeholder));
    if (!stands_in)
        return {};
    CKPT_TRY(notify_as(pair.placeholder.pid,
                       fmt::format("MAINPID={}\nSTATUS={}", pair.main.pid, pair.status)));
    return poll_until(soon(), pair.unit, "systemd does not accept its main process",
                      [&]() -> Result<bool> {
                          CKPT_ASSIGN(bool lives, pair.main.lives());
                          if (!lives)
                              return true;
                          CKPT_ASSIGN(bool still, is_main(systemd, pair, pair.placeholder));
                          return !still;
                      });
}

Result<void> hold_numbers(const RecordedProcess& recorded) {
    CKPT_ASSIGN(bool lives, recorded.lives());
    if (!lives)
        return {};
    CKPT_ASSIGN(auto placeholder, Placeholder::find(recorded.pid));
    if (!placeholder)
        return {};
    return placeholder->hold_numbers(soon());
}

// The unit as it is while it is suspended.
Result<void> stay_suspended(const RecordedPair& pair) {
    CKPT_TRY(kill_others(pair.cgroup_dir, pair.placeholder.pid, soon()));
    return hold_numbers(pair.placeholder);
}

// The main process that lives on becomes systemd's again, and `leave` ends the placeholder; with none the
// unit stays suspended.
Result<void> settle_main(const UndoArgs& args, Result<void> (*leave)(const RecordedProcess& placeholder)) {
    CKPT_ASSIGN(RecordedPair pair, parse_pair(args));
    CKPT_ASSIGN(bool placeholder_lives, pair.placeholder.lives());
    if (!placeholder_lives)
        return {};
    CKPT_ASSIGN(Systemd systemd, Systemd::connect());
    CKPT_ASSIGN(bool main_lives, pair.main.lives());
    if (main_lives)
        CKPT_TRY(announce_main(systemd, pair));
    CKPT_ASSIGN(bool stands_in, is_main(systemd, pair, pair.placeholder));
    return stands_in ? stay_suspended(pair) : leave(pair.placeholder);
}

Result<void> take_back(const UndoArgs& args) {
    return settle_main(args, [](const RecordedProcess& placeholder) {
        return kill_process(placeholder.pid, placeholder.start);
    });
}

Result<void> hold_again(const UndoArgs& args) {
    CKPT_ASSIGN(RecordedProcess placeholder, RecordedProcess::parse(args, 0));
    return hold_numbers(placeholder);
}

// Without its placeholder the unit was ended by somebody else since: what it has now is not ours.
Result<void> end_restored(const UndoArgs& args) {
    CKPT_ASSIGN(RecordedPair pair, parse_pair(args));
    CKPT_ASSIGN(bool lives, pair.placeholder.lives());
    if (!lives)
        return {};
    return kill_others(pair.cgroup_dir, pair.placeholder.pid, soon());
}

Result<void> finish_resume(const UndoArgs& args) {
    return settle_main(args, [](const RecordedProcess& recorded) -> Result<void> {
        CKPT_ASSIGN(auto placeholder, Placeholder::find(recorded.pid));
        return placeholder ? placeholder->dismiss(soon()) : Result<void>();
    });
}

}  // namespace

Result<uint64_t> undo_by_taking_back(Journal& journal, const PlaceholderPair& pair) {
    return add_pair(journal, kTakeBack, pair);
}

Result<uint64_t> undo_by_holding_numbers(Journal& journal, pid_t placeholder) {
    UndoArgs args;
    CKPT_TRY(RecordedProcess::append(args, placeholder));
    return journal.add(kHoldNumbers, std::move(args));
}

Result<uint64_t> undo_by_ending_restored(Journal& journal, const PlaceholderPair& pair) {
    return add_pair(journal, kEndRestored, pair);
}

Result<uint64_t> undo_by_finishing(Journal& journal, const PlaceholderPair& pair) {
    return add_pair(journal, kFinishResume, pair);
}

void add_suspend_undo_kinds(UndoTable& table) {
    table.add(kTakeBack, take_back);
    table.add(kHoldNumbers, hold_again);
    table.add(kEndRestored, end_restored);
    table.add(kFinishResume, finish_resume);
}

}  // namespace checkpointd
