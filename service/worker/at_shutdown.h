// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <string>

#include "config/policy/policy.h"
#include "core/base/error.h"

namespace checkpointd {

struct ShutdownConfig {
    std::string worker;  // this program
    std::string jobs_dir = "/run/checkpointd/at-shutdown";
    std::string store_dir = "/var/lib/checkpointd";
    std::string fault_flag = "/run/checkpointd/allow-faults";
    std::string vendor_policy_dir = kVendorPolicyDir;
    std::string admin_policy_dir = kAdminPolicyDir;
};

// What checkpointd-shutdown.service does when it is stopped: if the system goes down, each unit that the policy
// wants on disk and whose stop waits for us (units/shutdown_order.h) is taken there, those first that need
// others of them. One that cannot be goes on until systemd stops it. Jobs of this kind run as our children:
// neither the bus nor the daemon can be started any more. Returns one line for each unit.
Result<std::string> checkpoint_at_shutdown(const ShutdownConfig& config);

}  // namespace checkpointd
