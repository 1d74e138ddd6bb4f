// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The two flows of a worker, composed of the rooms below: units, engine, image store.
#pragma once

#include <string>

#include "core/transaction/journal.h"
#include "service/protocol.h"
#include "service/worker/job_steps.h"

namespace checkpointd {

// What a worker leaves in an image beside CRIU's files.
inline constexpr const char* kUnitFactsName = "checkpointd-unit.json";
inline constexpr const char* kUnitFilesName = "checkpointd-files.tar";
// In an image's info: its unit has sockets of PID 1's, whose first client may wake it.
inline constexpr const char* kListensName = "listens";

// The unit goes to disk. Mode stop: it is inactive afterwards; suspend: it is active, with a placeholder;
// snapshot: it goes on. On failure (before its tasks end) the unit runs on as before and the store has no
// image; what is left to undo stands in `journal`.
Result<JobResult> run_checkpoint(const JobRequest& request, Journal& journal, JobSteps& steps);

// The unit comes back from its image. On failure no process of it exists, the unit is inactive (or suspended,
// as it was) and the image is ready for another try.
Result<JobResult> run_restore(const JobRequest& request, Journal& journal, JobSteps& steps);

// The plan of an image as text.
Result<std::string> explain_image(const std::string& store, const std::string& image_id);

}  // namespace checkpointd
