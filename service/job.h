// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "service/protocol.h"

namespace checkpointd {

enum class JobState {
    kStarting,    // PID 1 was asked for the worker
    kRunning,     // the worker has spoken
    kCancelling,  // it was asked to stop
    kRecovering,  // it died; its steps are being undone
    kDone,
    kFailed,
    kCancelled,
    kTimeout,
};
std::string_view to_string(JobState state);

// One job as the daemon sees it: a state machine that only goes forward. It does nothing by itself.
class Job {
  public:
    Job(JobRequest request, std::string dir) : request_(std::move(request)), dir_(std::move(dir)) {}

    const JobRequest& request() const { return request_; }
    const std::string& dir() const { return dir_; }
    uint32_t id() const { return request_.id; }
    JobState state() const { return state_; }
    bool finished() const { return state_ >= JobState::kDone; }
    const std::string& phase() const { return phase_; }
    double progress() const { return progress_; }
    uint64_t bytes() const { return bytes_; }
    uint64_t bytes_total() const { return bytes_total_; }
    uint64_t finished_usec() const { return finished_usec_; }
    const JobResult& result() const { return result_; }  // meaningful once finished

    // Each returns the names of the D-Bus properties that changed; empty when the event came too late.
    std::vector<std::string> apply(const ProgressMessage& message);
    std::vector<std::string> cancelling();
    std::vector<std::string> recovering();
    std::vector<std::string> finish(JobResult result, uint64_t now_usec);

    // How a worker that left no result ended, as far as can be told from outside.
    Error death(uint64_t monotonic_now_usec) const;

  private:
    JobRequest request_;
    std::string dir_;
    JobState state_ = JobState::kStarting;
    bool cancel_wanted_ = false;
    std::string phase_;
    double progress_ = 0;
    uint64_t bytes_ = 0;
    uint64_t bytes_total_ = 0;
    uint64_t deadline_usec_ = 0;
    uint64_t finished_usec_ = 0;
    JobResult result_;
};

}  // namespace checkpointd
