// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <csignal>
#include <ctime>
#include <mutex>
#include <string>
#include <vector>

#include "core/base/scoped_fd.h"
#include "core/base/steps.h"
#include "service/protocol.h"
#include "service/worker_channel.h"

namespace checkpointd {

// The one door of a job's steps (docs/steps.md lists them). Entering a step reports it, keeps the policy's
// deadlines, honours a wish to cancel, and injects the fault that a test asked for.
//
// Deadlines are kept twice: between steps an error ends the job in the ordinary way; should a step itself
// hang, SIGALRM ends this process, and the daemon undoes what it left.
class JobSteps : public Steps {
  public:
    explicit JobSteps(const JobRequest& request);
    JobSteps(const JobSteps&) = delete;
    JobSteps& operator=(const JobSteps&) = delete;
    ~JobSteps() override;

    // Blocks SIGTERM and takes it as the wish to cancel; arms the alarm. Call before any thread exists.
    Result<void> arm();

    Result<void> enter(std::string_view step) override;
    void moved(uint64_t done, uint64_t total) override;
    void giving_back(Microseconds most) override;
    std::chrono::steady_clock::time_point deadline() const override;

    // From here on there is no way back: cancelling and deadlines are not honoured any more.
    void no_way_back();
    // The job has failed, and undoing it may take so long: until then no deadline of its own ends this process.
    void begin_undo(Microseconds time);
    // Readable from when the job was cancelled on, nobody reads from it; -1 before arm().
    int cancel_fd() const { return cancel_.get(); }
    // When that phase must be over, which is the present one or begins now; for calls that take a deadline of their own.
    std::chrono::steady_clock::time_point deadline_of(Phase phase) const;

    // How long each step took so far.
    std::vector<StepTime> times() const;

  private:
    Result<void> check_cancelled(std::string_view step);
    Result<void> check_deadline(std::string_view step);
    Result<void> inject(std::string_view step);
    void begin_step(std::string_view step);
    void set_alarm();
    void report();

    const JobRequest& request_;
    ProgressSender sender_;
    ScopedFd cancel_;
    timer_t alarm_{};
    bool armed_ = false;
    bool committed_ = false;
    bool halted_ = false;  // by an injected fault, which is meant once

    mutable std::mutex mutex_;  // moved() comes from the memory pump's threads
    uint64_t started_usec_;
    uint64_t total_deadline_;
    uint64_t phase_deadline_ = UINT64_MAX;
    uint64_t given_back_by_ = 0;  // until the next step: no alarm before
    Phase phase_ = Phase::kTotal;
    ProgressMessage message_;
    uint64_t step_started_ = 0;
    uint64_t last_report_ = 0;
    uint64_t reported_ = 0;   // bytes
    bool has_moved_ = false;  // in this step
    std::vector<StepTime> times_;
};

// Which deadline of the policy holds for a step, and how far a job is when it enters it.
struct StepPlace {
    Phase phase;
    double progress;
};
StepPlace place_of(JobType type, std::string_view step);

}  // namespace checkpointd
