// SPDX-License-Identifier: LGPL-2.1-or-later
//
// systemd.generator(7): runs before any unit is started. It writes no units yet; it moves the PID allocator
// above all PIDs that stored images need, so that the services of this boot leave them free.
#include <cstdio>
#include <cstdlib>

#include "units/pid_floor.h"

using namespace checkpointd;

static Result<bool> run(const char* store) {
    CKPT_ASSIGN(pid_t highest, highest_image_pid(store));
    return raise_pid_floor(highest);
}

int main() {
    const char* store = std::getenv("CHECKPOINTD_STORE");
    auto done = run(store ? store : "/var/lib/checkpointd");
    // Generators log to the kernel's ring buffer, via stderr; a floor that cannot be raised stops no boot.
    if (!done)
        std::fprintf(stderr, "checkpointd-generator: %s\n", done.error().line().c_str());
    return 0;
}
