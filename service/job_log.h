// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What the journal is told of jobs, as records with fields: CHECKPOINTD_JOB=, CHECKPOINTD_TYPE=,
// CHECKPOINTD_IMAGE= and numbers, see checkpointd(8). `journalctl -u` shows them under the unit that the job
// is for and under checkpointd.service. A worker tells of its own job, because it may outlive the daemon;
// the daemon tells of those that ended without a word.
#pragma once

#include "service/protocol.h"

namespace checkpointd {

void log_job_began(const JobRequest& request);
void log_job_ended(const JobRequest& request, const JobResult& result);
// What a dead worker left has been undone.
void log_job_undone(const JobRequest& request);

}  // namespace checkpointd
