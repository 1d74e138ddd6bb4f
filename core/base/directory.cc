// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/base/directory.h"

#include <cerrno>
#include <sys/stat.h>

namespace checkpointd {

Result<void> make_directory(const std::string& path, mode_t mode) {
    if (mkdir(path.c_str(), mode) != 0 && errno != EEXIST)
        return fail_errno(path, "cannot make the directory");
    return {};
}

}  // namespace checkpointd
