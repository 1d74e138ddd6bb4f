// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/undo.h"

#include <algorithm>
#include <cerrno>
#include <unistd.h>

#include "core/transaction/recorded_process.h"
#include "units/definition.h"
#include "units/cold_start.h"
#include "units/drop_in.h"
#include "units/tell.h"
#include "units/unit_process.h"

namespace checkpointd {
namespace {

constexpr const char* kRemoveDropIn = "units.remove-drop-in";
constexpr const char* kAwaitStop = "units.await-stop";
constexpr const char* kUnstage = "units.unstage";
constexpr auto kPatience = std::chrono::seconds(60);

Result<std::string> unit_argument(const UndoArgs& args, size_t count, const char* kind) {
    if (args.size() != count || !is_valid_unit_name(args[0]))
        return fail(ErrorKind::kInternal, kind, "wrong arguments in the journal");
    return args[0];
}

// Returns whether there was anything to remove.
Result<bool> remove_file(const std::string& path) {
    bool existed = unlink(path.c_str()) == 0;
    if (!existed && errno != ENOENT)
        return fail_errno(path, "cannot remove the drop-in");
    std::string directory = path.substr(0, path.rfind('/'));
    // Others' drop-ins may lie in it.
    if (rmdir(directory.c_str()) != 0 && errno != ENOENT && errno != ENOTEMPTY && errno != EEXIST)
        return fail_errno(directory, "cannot remove the drop-in's directory");
    return existed;
}

Result<void> undo_drop_in(const UndoArgs& args) {
    CKPT_ASSIGN(std::string unit, unit_argument(args, 1, kRemoveDropIn));
    CKPT_ASSIGN(Systemd systemd, Systemd::connect());
    return remove_drop_in(systemd, unit);
}

Result<void> await_stop(const UndoArgs& args) {
    CKPT_ASSIGN(std::string unit, unit_argument(args, 1, kAwaitStop));
    CKPT_ASSIGN(Systemd systemd, Systemd::connect());
    return poll_until(std::chrono::steady_clock::now() + kPatience, unit,
                      "systemd does not come to an end with its stop", [&]() -> Result<bool> {
                          CKPT_ASSIGN(const bool is_busy, systemd.has_job(unit));
                          return !is_busy;
                      });
}

// UNIT, or UNIT PID START-TIME.
Result<void> unstage(const UndoArgs& args) {
    CKPT_ASSIGN(std::string unit, unit_argument(args, args.size() == 3 ? 3 : 1, kUnstage));
    if (args.size() == 3) {
        CKPT_ASSIGN(const auto main, RecordedProcess::parse(args, 1));
        CKPT_ASSIGN(const bool is_alive, main.lives());
        if (is_alive)
            return {};
    }
    CKPT_ASSIGN(Systemd systemd, Systemd::connect());
    // Without our drop-in the unit was stopped and started anew by someone else since: not ours to stop.
    CKPT_ASSIGN(bool is_loaded, has_drop_in(systemd, unit));
    if (!is_loaded)
        return {};
    return systemd.stop_and_forget(unit, std::chrono::steady_clock::now() + kPatience);
}

}  // namespace

void add_unit_undo_kinds(UndoTable& table) {
    table.add(kRemoveDropIn, undo_drop_in);
    table.add(kAwaitStop, await_stop);
    table.add(kUnstage, unstage);
    add_definition_undo_kind(table);
    add_tell_undo_kind(table);
    table.add(kColdStart, run_cold_start);
}

Result<uint64_t> undo_by_removing_drop_in(Journal& journal, const std::string& unit) {
    return journal.add(kRemoveDropIn, {unit});
}

Result<uint64_t> undo_by_awaiting_stop(Journal& journal, const std::string& unit) {
    return journal.add(kAwaitStop, {unit});
}

Result<uint64_t> undo_by_unstaging(Journal& journal, const std::string& unit) {
    return journal.add(kUnstage, {unit});
}

Result<uint64_t> undo_by_unstaging_unless_alive(Journal& journal, const std::string& unit,
                                                pid_t main_pid) {
    UndoArgs args{unit};
    CKPT_TRY(RecordedProcess::append(args, main_pid));
    return journal.add(kUnstage, std::move(args));
}

Result<void> remove_drop_in(Systemd& systemd, const std::string& unit) {
    CKPT_ASSIGN(bool existed, remove_file(drop_in_path(kRuntimeUnitDir, unit)));
    // A job that died between the removal and the reload left no file, but a unit that remembers it.
    CKPT_ASSIGN(bool is_loaded, has_drop_in(systemd, unit));
    if (existed || is_loaded)
        return systemd.reload();
    return {};
}

Result<bool> has_drop_in(Systemd& systemd, const std::string& unit) {
    CKPT_ASSIGN(auto paths, systemd.list(unit, "Unit", "DropInPaths"));
    return std::find(paths.begin(), paths.end(), drop_in_path(kRuntimeUnitDir, unit)) != paths.end();
}

}  // namespace checkpointd
