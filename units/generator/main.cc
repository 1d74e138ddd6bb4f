// SPDX-License-Identifier: LGPL-2.1-or-later
//
// systemd.generator(7): runs before any unit is started, and at each daemon-reload. It moves the PID allocator
// above all PIDs that stored images need, so that the services of this boot leave them free, and puts a gate
// (units/gate.h) before each unit that has an image which is ready.
#include <cstdio>
#include <cstdlib>

#include "config/policy/policy.h"
#include "units/gate.h"
#include "units/pid_floor.h"

using namespace checkpointd;

static Result<bool> raise_floor(const char* store) {
    CKPT_ASSIGN(pid_t highest, highest_image_pid(store));
    return raise_pid_floor(highest);
}

static Result<std::vector<std::string>> put_gates(const char* store, const char* directory) {
    auto policy = load_policy("/usr/lib/checkpointd", "/etc/checkpointd");
    if (!policy)
        std::fprintf(stderr, "checkpointd-generator: %s\n", policy.error().line().c_str());
    return write_gates(store, directory, [&policy](const std::string& unit) {
        return policy && policy->for_unit(unit).reuse;
    });
}

// Generators log to the kernel's ring buffer, via stderr; nothing that fails here stops a boot.
template <typename T>
static void report(const Result<T>& done) {
    if (!done)
        std::fprintf(stderr, "checkpointd-generator: %s\n", done.error().line().c_str());
}

int main(int argc, char** argv) {
    const char* own = std::getenv("CHECKPOINTD_STORE");
    const char* store = own ? own : "/var/lib/checkpointd";
    report(raise_floor(store));
    if (argc > 1)
        report(put_gates(store, argv[1]));
    return 0;
}
