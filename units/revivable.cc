// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/revivable.h"

#include <algorithm>
#include <array>

namespace checkpointd {
namespace {

// What a restore needs; and what all of these wait for.
constexpr std::array<std::string_view, 6> kNeeded = {"dbus.service",        "dbus-broker.service",
                                                     "dbus.socket",         "checkpointd.service",
                                                     "basic.target",        "sysinit.target"};

bool is_needed(const std::string& unit) {
    return std::find(kNeeded.begin(), kNeeded.end(), unit) != kNeeded.end();
}

}  // namespace

Result<void> check_revivable(Systemd& systemd, const std::string& unit) {
    CKPT_TRY(systemd.load_unit(unit));
    CKPT_ASSIGN(std::string load_state, systemd.text(unit, "Unit", "LoadState"));
    if (load_state != "loaded")
        return fail(ErrorKind::kNotFound, unit,
                    load_state == "not-found" ? "there is no such unit" : "the unit is " + load_state);
    std::vector<Error> found;
    auto refuse = [&](std::string why) {
        found.push_back(Error{ErrorKind::kUnsupported, unit, std::move(why), {}, 0, {}});
    };
    CKPT_ASSIGN(bool is_transient, systemd.boolean(unit, "Unit", "Transient"));
    if (!unit.ends_with(".service"))
        refuse("only services can");
    if (is_transient)
        refuse("it is transient: its definition vanishes when it stops");
    CKPT_ASSIGN(bool defaults, systemd.boolean(unit, "Unit", "DefaultDependencies"));
    if (!defaults)
        refuse("it has DefaultDependencies=no: it may start before the bus and checkpointd can");
    if (is_needed(unit))
        refuse("a restore itself needs this unit");
    CKPT_ASSIGN(auto before, systemd.list(unit, "Unit", "Before"));
    for (const std::string& other : before)
        if (is_needed(other))
            refuse(fmt::format("it starts before {}, which a restore needs", other));
    return all_blockers(unit, "this unit cannot be restored when it starts", std::move(found));
}

}  // namespace checkpointd
