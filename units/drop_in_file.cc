// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/drop_in_file.h"

#include <cerrno>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/directory.h"
#include "core/base/io.h"
#include "units/drop_in.h"
#include "units/undo.h"

namespace checkpointd {

Result<void> write_drop_in_file(const std::string& path, const std::string& text) {
    CKPT_TRY(make_directory(path.substr(0, path.rfind('/')), 0755));
    return write_file(AT_FDCWD, path, text, 0644);
}

// Saves the reload, where PID 1 has forgotten the unit (one that is down and that none refers to).
static Result<bool> is_taken_unasked(Systemd& systemd, const std::string& unit) {
    CKPT_ASSIGN(const bool is_loaded, systemd.is_loaded(unit));
    return is_loaded ? false : has_drop_in(systemd, unit);
}

Result<void> put_drop_in(Systemd& systemd, Journal& journal, const std::string& unit,
                         const std::string& text, std::string_view prefix, Steps& steps,
                         uint64_t& undo_id) {
    std::string path = drop_in_path(kRuntimeUnitDir, unit);
    if (access(path.c_str(), F_OK) == 0)
        return fail(ErrorKind::kConflict, path, "another job is at work on this unit",
                    "wait for it, or let checkpointd clean up after it");
    CKPT_ASSIGN(undo_id, undo_by_removing_drop_in(journal, unit));
    CKPT_TRY(steps.enter(fmt::format("{}.write-drop-in", prefix)));
    CKPT_TRY(make_directory(std::string(kRuntimeUnitDir), 0755));
    CKPT_TRY(write_drop_in_file(path, text));
    CKPT_TRY(steps.enter(fmt::format("{}.reload", prefix)));
    CKPT_ASSIGN(const bool is_taken, is_taken_unasked(systemd, unit));
    if (is_taken)
        return {};
    CKPT_TRY(systemd.reload());
    CKPT_ASSIGN(std::string load_state, systemd.text(unit, "Unit", "LoadState"));
    if (load_state == "not-found")
        return {};  // a transient unit, which takes it when it is made
    CKPT_ASSIGN(bool is_loaded, has_drop_in(systemd, unit));
    if (!is_loaded)
        return fail(ErrorKind::kSystem, unit, "systemd did not take our drop-in",
                    "are units below /run/systemd/system masked or overridden?");
    return {};
}

}  // namespace checkpointd
