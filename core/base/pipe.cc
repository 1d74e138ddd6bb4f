// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/base/pipe.h"

#include <fcntl.h>
#include <string>
#include <unistd.h>

namespace checkpointd {

Result<Pipe> make_pipe(std::string_view object) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return fail_errno(std::string(object), "cannot make a pipe");
    return Pipe{ScopedFd(ends[0]), ScopedFd(ends[1])};
}

}  // namespace checkpointd
