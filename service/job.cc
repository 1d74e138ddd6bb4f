// SPDX-License-Identifier: LGPL-2.1-or-later
#include "service/job.h"

#include <algorithm>
#include <cmath>

#include <fmt/core.h>

namespace checkpointd {
namespace {

JobState final_state(const JobResult& result) {
    if (result.ok) return JobState::kDone;
    if (result.error.kind == ErrorKind::kCancelled) return JobState::kCancelled;
    if (result.error.kind == ErrorKind::kTimeout) return JobState::kTimeout;
    return JobState::kFailed;
}

template <typename T>
void update(T& field, const T& value, const char* name, std::vector<std::string>& changed) {
    if (field == value) return;
    field = value;
    changed.emplace_back(name);
}

}  // namespace

std::string_view to_string(JobState state) {
    switch (state) {
        case JobState::kStarting: return "starting";
        case JobState::kRunning: return "running";
        case JobState::kCancelling: return "cancelling";
        case JobState::kRecovering: return "recovering";
        case JobState::kDone: return "done";
        case JobState::kFailed: return "failed";
        case JobState::kCancelled: return "cancelled";
        case JobState::kTimeout: return "timeout";
    }
    return "failed";
}

std::vector<std::string> Job::apply(const ProgressMessage& message) {
    std::vector<std::string> changed;
    if (finished() || state_ == JobState::kRecovering) return changed;
    if (state_ == JobState::kStarting) update(state_, JobState::kRunning, "State", changed);
    update(phase_, message.step, "Phase", changed);
    // A worker is trusted, but its numbers are shown to users: they never fall, and stay in 0..1.
    const double progress = std::isfinite(message.progress) ? message.progress : 0;
    update(progress_, std::clamp(std::max(progress_, progress), 0.0, 1.0), "Progress", changed);
    update(bytes_, message.bytes, "Bytes", changed);
    update(bytes_total_, message.bytes_total, "BytesTotal", changed);
    deadline_usec_ = message.deadline_usec;
    return changed;
}

std::vector<std::string> Job::cancelling() {
    std::vector<std::string> changed;
    if (finished() || state_ == JobState::kRecovering) return changed;
    cancel_wanted_ = true;
    update(state_, JobState::kCancelling, "State", changed);
    return changed;
}

std::vector<std::string> Job::recovering() {
    std::vector<std::string> changed;
    if (!finished()) update(state_, JobState::kRecovering, "State", changed);
    return changed;
}

std::vector<std::string> Job::finish(JobResult result, uint64_t now_usec) {
    if (finished()) return {};
    std::vector<std::string> changed{"State", "FinishedUsec", "Result"};
    state_ = final_state(result);
    if (result.ok) {
        progress_ = 1;
        changed.emplace_back("Progress");
    } else {
        changed.insert(changed.end(), {"ErrorName", "ErrorMessage"});
    }
    result_ = std::move(result);
    finished_usec_ = now_usec;
    return changed;
}

Error Job::death(uint64_t monotonic_now_usec) const {
    const std::string where = phase_.empty() ? "before its first step" : "in step " + phase_;
    if (cancel_wanted_)
        return Error{ErrorKind::kCancelled, request_.unit,
                     fmt::format("the job was cancelled {}", where), {}, 0, {}};
    if (deadline_usec_ != 0 && monotonic_now_usec >= deadline_usec_)
        return Error{ErrorKind::kTimeout, request_.unit,
                     fmt::format("the deadline passed {}", where),
                     "raise the timeout of this phase in the policy", 0, {}};
    return Error{ErrorKind::kGone, request_.unit, fmt::format("the worker died {}", where),
                 fmt::format("see journalctl -u checkpointd-job-{}.service", id()), 0, {}};
}

}  // namespace checkpointd
