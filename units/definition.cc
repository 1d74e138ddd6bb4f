// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/definition.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/io.h"
#include "units/drop_in.h"

namespace checkpointd {
namespace {

constexpr std::string_view kTransientDir = "/run/systemd/transient/";
constexpr const char* kDefine = "units.define";

Result<void> undo_definition(const UndoArgs& args) {
    if (args.size() != 2 || !is_valid_unit_name(args[0]))
        return fail(ErrorKind::kInternal, kDefine, "wrong arguments in the journal");
    CKPT_ASSIGN(Systemd systemd, Systemd::connect());
    CKPT_ASSIGN(std::string path, systemd.text(args[0], "Unit", "FragmentPath"));
    // Gone, or another unit of that name.
    if (!path.starts_with(kTransientDir))
        return {};
    const std::string aside = path + ".checkpointd";
    CKPT_TRY(write_file(AT_FDCWD, aside, args[1], 0644));
    if (rename(aside.c_str(), path.c_str()) != 0)
        return fail_errno(path, "cannot put the unit's definition back");
    return {};
}

}  // namespace

Result<std::string> read_definition(Systemd& systemd, const std::string& unit) {
    CKPT_ASSIGN(std::string fragment, systemd.text(unit, "Unit", "FragmentPath"));
    CKPT_ASSIGN(std::string text, read_file(AT_FDCWD, fragment));
    CKPT_ASSIGN(auto drop_ins, systemd.list(unit, "Unit", "DropInPaths"));
    for (const std::string& path : drop_ins)
        if (path.starts_with(kTransientDir)) {
            CKPT_ASSIGN(std::string more, read_file(AT_FDCWD, path));
            text += "\n" + more;
        }
    return text;
}

Result<uint64_t> undo_by_defining(Journal& journal, const std::string& unit,
                                  const std::string& definition) {
    return journal.add(kDefine, {unit, definition});
}

void add_definition_undo_kind(UndoTable& table) {
    table.add(kDefine, undo_definition);
}

Result<std::string> start_transient(Systemd& systemd, const UnitFacts& facts, pid_t process) {
    TransientUnit unit{facts.id, facts.description, {}, {}, {}};
    if (facts.is_scope()) {
        unit.slice = facts.slice;
        unit.processes = {static_cast<uint32_t>(process)};
        // A unique name is that of a connection, which is not there any more.
        if (!facts.controller.starts_with(':'))
            unit.controller = facts.controller;
    }
    return systemd.start_transient_unit(unit);
}

}  // namespace checkpointd
