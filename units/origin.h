// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What a unit came from: its unit files and the programs and libraries that its processes had mapped. An
// image of a unit that comes from something else today is stale.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"
#include "units/systemd.h"

namespace checkpointd {

// A file that was mapped executable.
struct ProgramFile {
    std::string path;
    uint64_t size = 0;
    uint64_t mtime_nsec = 0;
    bool operator==(const ProgramFile&) const = default;
};

struct UnitOrigin {
    std::map<std::string, std::string> unit_files;  // path -> digest of its text; without drop-ins of ours
    std::vector<ProgramFile> programs;
    bool operator==(const UnitOrigin&) const = default;
};

// Of a loaded unit and its processes, which stand still. Files that the host sees under another name or not
// at all (a unit's own mounts, memfds, files that were replaced since) are left out: the engine checks those.
Result<UnitOrigin> origin_of(Systemd& systemd, const std::string& unit, const std::vector<pid_t>& pids);

// kConflict with one cause for each file that is not what it was. Of an origin without unit files, and of a unit
// that systemd does not know (which is no reason to give up its image), only the programs are looked at.
Result<void> check_origin(Systemd& systemd, const std::string& unit, const UnitOrigin& origin);

}  // namespace checkpointd
