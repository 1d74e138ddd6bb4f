// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/base/scoped_fd.h"

#include <cerrno>
#include <unistd.h>

namespace checkpointd {

void ScopedFd::reset(int fd) {
    if (fd_ >= 0) {
        int saved = errno;
        close(fd_);
        errno = saved;
    }
    fd_ = fd;
}

}  // namespace checkpointd
