// SPDX-License-Identifier: LGPL-2.1-or-later
//
// systemd.generator(7): runs before any unit is started, and at each daemon-reload. It moves the PID allocator
// above all PIDs that stored images need, so that the services of this boot leave them free; puts a gate
// (units/gate.h) before each unit that has an image which is ready; and orders the units that go to disk when the
// system goes down (units/shutdown_order.h).
#include <cstdio>
#include <cstdlib>

#include "config/policy/policy.h"
#include "images/image_store.h"
#include "units/gate.h"
#include "units/pid_floor.h"
#include "units/shutdown_order.h"

using namespace checkpointd;

static Result<bool> raise_floor(const char* store) {
    CKPT_ASSIGN(pid_t highest, highest_image_pid(store));
    return raise_pid_floor(highest);
}

// A policy that cannot be read keeps no unit from its image.
static Result<std::vector<std::string>> put_gates(const char* store, const char* directory,
                                                  const Result<Policy>& policy) {
    return write_gates(store, directory, [&policy](const std::string& unit) {
        return policy && policy->for_unit(unit).reuse;
    });
}

// Those that the policy names without a pattern, too: instances have no unit file.
static Result<std::vector<std::string>> order_shutdown(const char* directory, const Policy& policy) {
    const auto asks = [&policy](const std::string& unit) { return policy.for_unit(unit).checkpoint_at_shutdown; };
    if (!policy.ever_at_shutdown()) return std::vector<std::string>();
    auto names = find_services({"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system",
                                "/usr/lib/systemd/system"}, "/run/systemd/units");
    for (const PatternSection& section : policy.units)
        if (section.pattern.find_first_of("*?[") == std::string::npos) names.push_back(section.pattern);
    return write_shutdown_order(names, directory, asks);
}

// Generators log to the kernel's ring buffer, via stderr; nothing that fails here stops a boot.
template <typename T>
static void report(const Result<T>& done) {
    if (!done)
        std::fprintf(stderr, "checkpointd-generator: %s\n", done.error().line().c_str());
}

int main(int argc, char** argv) {
    const char* own = std::getenv("CHECKPOINTD_STORE");
    const char* store = own ? own : images::kDefaultStoreRoot;
    report(raise_floor(store));
    if (argc > 1) {
        const auto policy = load_policy(kVendorPolicyDir, kAdminPolicyDir);
        report(policy);
        report(put_gates(store, argv[1], policy));
        if (policy)
            report(order_shutdown(argv[1], *policy));
    }
    return 0;
}
