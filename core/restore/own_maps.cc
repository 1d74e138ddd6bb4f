// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/restore/own_maps.h"

#include <cstdio>
#include <fcntl.h>
#include <sstream>

#include "core/base/io.h"

namespace checkpointd {

Result<std::vector<OwnMapping>> own_mappings() {
    CKPT_ASSIGN(std::string text, read_file(AT_FDCWD, "/proc/self/maps"));
    std::vector<OwnMapping> all;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        OwnMapping mapping;
        int name = 0;
        if (std::sscanf(line.c_str(), "%lx-%lx %*s %*s %*s %*s %n", &mapping.start, &mapping.end,
                        &name) < 2)
            return fail(ErrorKind::kInternal, "/proc/self/maps", "a line cannot be read");
        mapping.name = line.substr(static_cast<size_t>(name));
        all.push_back(std::move(mapping));
    }
    return all;
}

}  // namespace checkpointd
