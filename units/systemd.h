// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A thin, typed client of PID 1 (org.freedesktop.systemd1, see org.freedesktop.systemd1(5)). Not thread
// safe: one object belongs to one thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"

namespace checkpointd {

using Deadline = std::chrono::steady_clock::time_point;

// One command of ExecStart= and its kin, as PID 1 holds it: specifiers are expanded, environment
// variables are not.
struct ExecCommand {
    std::string path;
    std::vector<std::string> argv;  // argv[0] included
    std::vector<std::string> flags;  // "ignore-failure", "privileged", "no-setuid", "no-env-expand", ...
    uint32_t pid = 0;                // of the last run
    int32_t code = 0;                // CLD_EXITED ... of the last run; 0 while it runs or before it ran
};

// What StartTransientUnit is told; empty members are left out.
struct TransientUnit {
    std::string name;
    std::string description;
    std::string slice;
    std::string controller;            // a scope's
    std::vector<uint32_t> processes;   // that a scope takes in
};

class Systemd {
  public:
    // Connects to the system bus, or to PID 1's own socket where there is no bus (early at boot).
    static Result<Systemd> connect();
    Systemd(Systemd&&) noexcept;
    Systemd& operator=(Systemd&&) noexcept;
    ~Systemd();

    // Object path of a unit; loads it when needed. kNotFound for an impossible name. An unknown unit has
    // LoadState "not-found", which is not an error here.
    Result<std::string> load_unit(const std::string& name);

    // Whether PID 1 holds the unit in memory: what it does not it reads afresh when it needs it.
    Result<bool> is_loaded(const std::string& name);

    // Properties by unit name. `interface` is the last part: "Unit", "Service", "Socket".
    Result<std::string> text(const std::string& unit, std::string_view interface, const char* property);
    Result<uint64_t> number(const std::string& unit, std::string_view interface, const char* property);
    Result<bool> boolean(const std::string& unit, std::string_view interface, const char* property);
    Result<std::vector<std::string>> list(const std::string& unit, std::string_view interface,
                                          const char* property);
    // ExecStart, ExecStartPre ... with flags (the property PROPERTY"Ex").
    Result<std::vector<ExecCommand>> commands(const std::string& unit, const char* property);
    // Whether a service has a SystemCallFilter=.
    Result<bool> has_call_filter(const std::string& unit);
    // "running", "stopping" ...: SystemState of org.freedesktop.systemd1(5).
    Result<std::string> system_state();
    // Names of the services that are up or on their way there.
    Result<std::vector<std::string>> running_services();
    // True when a job of the unit is queued or running.
    Result<bool> has_job(const std::string& unit);

    // Queue a job and return its object path. `mode` as in systemctl --job-mode.
    Result<std::string> start_unit(const std::string& unit, const char* mode = "replace");
    Result<std::string> stop_unit(const std::string& unit, const char* mode = "replace");
    Result<std::string> restart_unit(const std::string& unit, const char* mode = "replace");
    Result<std::string> start_transient_unit(const TransientUnit& unit);
    // Has the job that start_unit() or stop_unit() queued ended, and how? Does not wait.
    Result<std::optional<std::string>> job_result(const std::string& job);
    // Waits till the job is gone and returns its result: "done", "failed", "canceled", "timeout",
    // "dependency", "skipped" ... kTimeout when the deadline passes; the job is not cancelled then.
    Result<std::string> wait_job(const std::string& job, Deadline deadline);

    // daemon-reload. Takes 0.1 s and more: batch what needs it.
    Result<void> reload();
    // reset-failed of one unit; a unit that is not loaded any more is fine.
    Result<void> reset_failed(const std::string& unit);
    // StopUnit mode ignore-dependencies and waiting for the end, then reset_failed(). For undo.
    Result<void> stop_and_forget(const std::string& unit, Deadline deadline);

  private:
    struct Impl;
    explicit Systemd(std::unique_ptr<Impl> impl);
    static Result<Systemd> watch(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

// Sends a notification to PID 1 as if process `sender` had sent it (needs CAP_SYS_ADMIN; PID 1 decides by
// the sender's PID which unit is meant). `state` is newline-separated, see sd_notify(3).
Result<void> notify_as(int sender, std::string_view state);

}  // namespace checkpointd
