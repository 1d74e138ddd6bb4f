// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The labels that a security module (SELinux, AppArmor, Smack) puts on processes. They are not
// carried: a restored process has that of the engine, which must therefore be the one it had.
#pragma once

#include <sys/types.h>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "units/blockers.h"

namespace checkpointd {

// /proc/PID/attr/current, see proc_pid_attr(5); empty where no module labels processes.
Result<std::string> security_label(pid_t pid);
// Modules end their text in different ways: by a line end, a zero byte or not at all.
std::string label_in(std::string_view text);

// Adds every process whose label is not `restored`, what a restored one would have.
void check_labels(const std::vector<pid_t>& pids, const std::string& restored, Blockers& blockers);

}  // namespace checkpointd
