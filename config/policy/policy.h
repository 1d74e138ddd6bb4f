// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "config/policy/duration.h"
#include "config/policy/tell.h"
#include "core/base/error.h"
#include "plugins/host/plugin_policy.h"

namespace checkpointd {

// The stretches of a job that have a deadline of their own.
enum class Phase {
    kPrepare, kTell, kFreeze, kCollect, kDevices, kMemory, kCommit, kStop, kStart, kRebuild, kTotal,
};
inline constexpr size_t kPhaseCount = 11;
std::string_view to_string(Phase phase);
const std::vector<Phase>& all_phases();

// What holds for one unit, after all files and sections were laid over each other.
struct UnitPolicy {
    std::map<Phase, Microseconds> timeouts;  // every phase has one
    unsigned keep = 1;                       // images of the unit that are kept; 0: all
    bool sync = true;                        // to disk before the unit is stopped
    bool reserve_pids = true;                // while the unit is off
    bool pid_namespace = false;              // where a PID of the image is taken; else that is refused
    bool restore_at_boot = false;            // each start of the unit is a restore if there is an image
    bool reuse = false;                      // an image is restored any number of times
    bool checkpoint_at_shutdown = false;     // taken to disk when the system goes down
    std::map<std::string, PluginPolicy> plugins;  // those that are named
    TellSettings tell;                       // over what the unit itself asks for

    Microseconds timeout(Phase phase) const { return timeouts.at(phase); }
    bool operator==(const UnitPolicy&) const = default;
};

// What a section of a file says; what it does not say is left to the sections under it.
struct PolicySection {
    std::map<Phase, Microseconds> timeouts;
    std::optional<unsigned> keep;
    std::optional<bool> sync;
    std::optional<bool> reserve_pids;
    std::optional<bool> pid_namespace;
    std::optional<bool> restore_at_boot;
    std::optional<bool> reuse;
    std::optional<bool> checkpoint_at_shutdown;
    std::map<std::string, PluginPolicy> plugins;
    TellSettings tell;
};

struct PatternSection {
    std::string pattern;  // fnmatch(3) over the unit's name
    PolicySection section;
};

// The whole policy. Immutable once loaded.
struct Policy {
    PolicySection defaults;
    std::vector<PatternSection> units;  // in order of rising precedence
    Microseconds idle_timeout = std::chrono::seconds(60);
    std::vector<std::string> files;     // those that were read

    // The policy for `unit`: built-in values, defaults, then every pattern that matches, in order.
    UnitPolicy for_unit(const std::string& unit) const;
    // Does any section ask for checkpoint-at-shutdown?
    bool ever_at_shutdown() const;
};

// Lays one YAML text over `policy`. `file` is what errors call it: FILE:LINE:COLUMN, from 1. Unknown
// keys, wrong types and bad values are errors that list what is allowed; all of a file at once.
Result<void> merge_policy(Policy& policy, const std::string& text, const std::string& file);

// Where the vendor's and the administrator's files are; see checkpointd-policy(5).
inline constexpr const char* kVendorPolicyDir = "/usr/lib/checkpointd";
inline constexpr const char* kAdminPolicyDir = "/etc/checkpointd";

// Reads VENDOR/policy.yaml, then ADMIN/policy.yaml, then VENDOR/policy.d and ADMIN/policy.d/*.yaml by
// name (a file in ADMIN hides its namesake in VENDOR). Missing files are fine.
Result<Policy> load_policy(const std::string& vendor_dir, const std::string& admin_dir);

// As YAML that merge_policy() reads.
std::string print_policy(const UnitPolicy& policy);

}  // namespace checkpointd
