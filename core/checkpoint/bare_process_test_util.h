// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <csignal>
#include <fcntl.h>
#include <sys/prctl.h>
#include <unistd.h>

namespace checkpointd {

// For the child of a test that is to be dumped: it dies with the test, leads a session of its own, and has
// nothing open but /dev/null.
inline void become_bare_process() {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setsid();
    int null = open("/dev/null", O_RDWR);
    for (int fd : {0, 1, 2})
        dup2(null, fd);
    close_range(3, ~0u, 0);
}

}  // namespace checkpointd
