// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include "core/transaction/journal.h"
#include "plugins/host/plugins.h"
#include "service/protocol.h"
#include "service/worker/job_steps.h"

namespace checkpointd {

// The plugins of a job, as the policy wants them. What is borrowed must outlive them.
inline PluginOptions plugin_options(const JobRequest& request, Journal& journal, JobSteps& steps, int image_dir_fd) {
    PluginOptions options;
    options.policy = request.policy.plugins;
    options.image_dir_fd = image_dir_fd;
    options.journal = &journal;
    options.open_by = steps.deadline_of(Phase::kDevices);
    options.cancel_fd = steps.cancel_fd();
    options.progress = [&steps](uint64_t done, uint64_t total) { steps.moved(done, total); };
    return options;
}

}  // namespace checkpointd
