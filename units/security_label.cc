// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/security_label.h"

#include <fcntl.h>
#include <cerrno>

#include "core/base/io.h"

namespace checkpointd {

std::string label_in(std::string_view text) {
    return std::string(text.substr(0, text.find_first_of(std::string_view("\n\0", 2))));
}

Result<std::string> security_label(pid_t pid) {
    auto text = read_file(AT_FDCWD, fmt::format("/proc/{}/attr/current", pid), 4096);
    if (text)
        return label_in(*text);
    // EINVAL: no module answers (fs/proc/base.c, proc_pid_attr_read()).
    if (text.error().errno_code == EINVAL || text.error().errno_code == ENOENT)
        return std::string();
    return tl::unexpected(std::move(text).error());
}

void check_labels(const std::vector<pid_t>& pids, const std::string& restored, Blockers& blockers) {
    for (pid_t pid : pids) {
        auto label = security_label(pid);
        if (!label && label.error().kind == ErrorKind::kGone)
            continue;
        if (!label || *label != restored)
            blockers.add(
                ErrorKind::kUnsupported,
                fmt::format("pid {} has the security label \"{}\", and would come back with \"{}\"",
                            pid, label.value_or("?"), restored),
                "take the unit's profile off (AppArmorProfile=, SELinuxContext=, "
                "SmackProcessLabel=), or "
                "let a rule of the module give both the same label");
    }
}

}  // namespace checkpointd
