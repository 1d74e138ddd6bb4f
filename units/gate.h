// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The gate: a program that PID 1 runs at the door of a unit that has an image, as one more ExecCondition=
// of its, before anything of the unit runs. While it waits there the worker lays out the stage (stage.h);
// then it leaves, and PID 1 starts the stage helper in place of the unit's program. Whatever goes wrong (no
// daemon, no bus, a damaged image, a killed gate) it leaves as well, and PID 1 starts the unit as its unit
// files say, word by word, in the same start job: nothing of the unit was changed until then.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "units/systemd.h"

namespace checkpointd {

inline constexpr const char* kGateProgram = "/usr/libexec/checkpointd/gate";
// Sorts before kDropInName, whose settings must win over it.
inline constexpr std::string_view kGateDropInName = "zz-checkpointd-gate.conf";

// What the worker, or whoever cleans up after it, tells a gate.
inline constexpr int kGateStaged = 10;  // SIGUSR1: the stage is laid out, leave
inline constexpr int kGateCold = 12;    // SIGUSR2: leave, and let it be a cold start

// The drop-in's text. The prefix "-" lets the unit start whatever becomes of the gate, "+" runs it as root
// without the unit's sandbox, so that it needs no right that the unit would not have.
std::string gate_drop_in(const std::string& unit, const std::string& gate = kGateProgram);

// In an image's info: systemd cannot start its unit, whose definition vanished with it.
inline constexpr const char* kNoUnitFile = "no-unit-file";

// An image of a unit that went on is no state to start from, unless the policy wants it at each start.
inline bool is_start_image(const std::string& mode, bool reuse) { return mode != "snapshot" || reuse; }

// Writes the drop-in of each unit of the store that has an image which is ready and that is_start_image(),
// below `directory` (a generator's output). Names that are no units' are skipped. Returns the units.
Result<std::vector<std::string>> write_gates(const std::string& store, const std::string& directory,
                                             const std::function<bool(const std::string& unit)>& is_reused);

// A pidfd of the gate that holds `unit`, or an empty one when its start does not wait for one.
Result<ScopedFd> find_gate(Systemd& systemd, const std::string& unit,
                           const std::string& gate = kGateProgram);

// A note for the next gate of the unit: let it start cold, for this reason. An older note stays. Notes live
// below /run and count for ten minutes.
Result<void> note_cold_start(const std::string& unit, const std::string& reason);
// Takes the note away.
std::optional<std::string> take_cold_note(const std::string& unit);

}  // namespace checkpointd
