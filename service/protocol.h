// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What the daemon and a worker tell each other: an immutable request file, datagrams of progress, and a
// result file. All JSON, so that a stuck job can be read with a pager.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <sys/types.h>
#include <vector>

#include "config/policy/policy.h"
#include "core/base/error.h"

namespace checkpointd {

enum class JobType { kCheckpoint, kRestore };
std::string_view to_string(JobType type);

// Fault injection: what happens when the job enters the step of that name.
struct Fault {
    enum class Action { kFail, kKill, kHang, kEnospc, kStop };
    std::string step;
    Action action = Action::kFail;
    bool operator==(const Fault&) const = default;
};
// "step=checkpoint.memory,action=kill"
Result<Fault> parse_fault(const std::string& text);
std::string to_string(const Fault& fault);

// Everything that a job is to do. Written once, never changed.
struct JobRequest {
    uint32_t id = 0;
    JobType type = JobType::kCheckpoint;
    std::string unit;
    std::string image_id;    // restore only
    std::string mode = "stop";
    bool sync = true;
    bool at_gate = false;    // restore only: PID 1 has begun to start the unit, which waits at its gate
    bool at_shutdown = false;  // checkpoint only: the system goes down, a stop job of the unit waits for us
    uid_t caller_uid = 0;
    uint64_t created_usec = 0;  // CLOCK_REALTIME
    std::string store_dir;      // of the images
    std::string channel;        // path of the daemon's datagram socket
    UnitPolicy policy;
    std::optional<Fault> fault;
    bool operator==(const JobRequest&) const = default;
};

struct StepTime {
    std::string step;
    uint64_t usec = 0;
    bool operator==(const StepTime&) const = default;
};

// How a job ended.
struct JobResult {
    bool ok = false;
    Error error;  // when not ok
    std::string image_id;
    uint64_t frozen_usec = 0;
    uint64_t total_usec = 0;
    uint64_t bytes = 0;
    uint64_t pages = 0;
    pid_t main_pid = 0;
    std::string pid_namespace;  // why the unit got one: who holds its PIDs; empty when it got none
    std::vector<StepTime> steps;
};

// One datagram from a worker.
struct ProgressMessage {
    uint32_t job = 0;
    std::string step;
    double progress = 0;  // 0..1
    uint64_t bytes = 0;
    uint64_t bytes_total = 0;
    uint64_t deadline_usec = 0;  // CLOCK_MONOTONIC end of the phase, 0 for none
    bool operator==(const ProgressMessage&) const = default;
};

std::string to_json(const JobRequest& request);
std::string to_json(const JobResult& result);
std::string to_json(const ProgressMessage& message);
std::string to_json(const Error& error);
// Refuse what is damaged, incomplete or of another version, as kBadInput.
Result<JobRequest> parse_request(const std::string& text);
Result<JobResult> parse_result(const std::string& text);
Result<ProgressMessage> parse_progress(const std::string& text);
// An error that went through a pipe; what is not JSON becomes the message of a kInternal one.
Error parse_error(const std::string& text);

// File names inside a job's directory.
// How long undoing a job takes at most, but for what plugins say that they need (undo_usec() in plugins/plugin.h).
inline constexpr Microseconds kUndoTime = std::chrono::seconds(90);

inline constexpr const char* kRequestFile = "request.json";
inline constexpr const char* kResultFile = "result.json";

Result<JobRequest> load_request(const std::string& job_dir);
// nullopt while there is none.
Result<std::optional<JobResult>> load_result(const std::string& job_dir);
// Written aside, synced and renamed: a reader sees all of it or nothing. Mode 0600.
Result<void> store_atomically(const std::string& dir, const std::string& name,
                              const std::string& content);

}  // namespace checkpointd
