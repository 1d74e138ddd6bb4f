// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/drop_in_file.h"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/io.h"
#include "units/drop_in.h"
#include "units/stop.h"

namespace checkpointd {
namespace {

constexpr auto kUndoDeadline = std::chrono::seconds(60);

Result<std::string> unit_argument(const UndoArgs& args, const char* kind) {
    if (args.size() != 1 || !is_valid_unit_name(args[0]))
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
    CKPT_ASSIGN(std::string unit, unit_argument(args, kRemoveDropIn));
    CKPT_ASSIGN(Systemd systemd, Systemd::connect());
    CKPT_ASSIGN(bool existed, remove_file(drop_in_path(kRuntimeUnitDir, unit)));
    // A job that died between the removal and the reload left no file, but a unit that remembers it.
    CKPT_ASSIGN(bool is_loaded, has_drop_in(systemd, unit));
    if (existed || is_loaded)
        return systemd.reload();
    return {};
}

Result<void> undo_staging(const UndoArgs& args) {
    CKPT_ASSIGN(std::string unit, unit_argument(args, kUnstage));
    CKPT_ASSIGN(Systemd systemd, Systemd::connect());
    // Without our drop-in the unit was stopped and started anew by someone else since: not ours to stop.
    CKPT_ASSIGN(bool is_loaded, has_drop_in(systemd, unit));
    if (!is_loaded)
        return {};
    return systemd.stop_and_forget(unit, std::chrono::steady_clock::now() + kUndoDeadline);
}

Result<void> make_directory(const std::string& path) {
    if (mkdir(path.c_str(), 0755) != 0 && errno != EEXIST)
        return fail_errno(path, "cannot make the directory");
    return {};
}

}  // namespace

Result<bool> has_drop_in(Systemd& systemd, const std::string& unit) {
    CKPT_ASSIGN(auto paths, systemd.list(unit, "Unit", "DropInPaths"));
    return std::find(paths.begin(), paths.end(), drop_in_path(kRuntimeUnitDir, unit)) != paths.end();
}

Result<void> put_drop_in(Systemd& systemd, Journal& journal, const std::string& unit,
                         const std::string& text, std::string_view prefix, Steps& steps,
                         uint64_t& undo_id) {
    std::string path = drop_in_path(kRuntimeUnitDir, unit);
    if (access(path.c_str(), F_OK) == 0)
        return fail(ErrorKind::kConflict, path, "another job is at work on this unit",
                    "wait for it, or let checkpointd clean up after it");
    CKPT_ASSIGN(undo_id, journal.add(kRemoveDropIn, {unit}));
    CKPT_TRY(steps.enter(fmt::format("{}.write-drop-in", prefix)));
    CKPT_TRY(make_directory(std::string(kRuntimeUnitDir)));
    CKPT_TRY(make_directory(path.substr(0, path.rfind('/'))));
    CKPT_TRY(write_file(AT_FDCWD, path, text, 0644));
    CKPT_TRY(steps.enter(fmt::format("{}.reload", prefix)));
    CKPT_TRY(systemd.reload());
    CKPT_ASSIGN(bool is_loaded, has_drop_in(systemd, unit));
    if (!is_loaded)
        return fail(ErrorKind::kSystem, unit, "systemd did not take our drop-in",
                    "are units below /run/systemd/system masked or overridden?");
    return {};
}

void add_unit_undo_kinds(UndoTable& table) {
    table.add(kRemoveDropIn, undo_drop_in);
    table.add(kUnstage, undo_staging);
}

}  // namespace checkpointd
