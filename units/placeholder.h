// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The process that stands in for a suspended unit (placeholder/holder.c): making it, finding it, talking
// to it. It knows its image by name, so what a unit is suspended on is told by the process itself.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "units/resolve.h"
#include "units/systemd.h"

namespace checkpointd {

inline constexpr const char* kPlaceholderProgram = "/usr/libexec/checkpointd/placeholder";

// What a placeholder is made of. All descriptors are borrowed until start().
struct PlaceholderPlan {
    std::string program = kPlaceholderProgram;
    std::string image;  // "redis.service/20260102T030405.123456Z"
    pid_t main_pid = 0;  // whose namespaces, descriptors 0 to 2, user and groups it takes over; of a user
                         // namespace it gets a descriptor
    int cgroup_fd = -1;
    std::vector<int> held;        // become its descriptors 3, 4, ...
    std::vector<pid_t> numbers;   // to be kept from others
    int end_signal = 15;          // the unit's KillSignal=
    uint64_t watchdog_usec = 0;   // how often it feeds the watchdog; 0: never
};

class Placeholder {
  public:
    // The first descriptor number of PlaceholderPlan::held in the placeholder.
    static constexpr int kFirstHeld = 3;

    // A process in the unit's cgroup, a child of our parent (PID 1 for a worker), that waits for start():
    // time to journal it. It ends if we die or drop this before.
    static Result<Placeholder> prepare(const PlaceholderPlan& plan);
    // It takes on the unit's namespaces and user and runs the program. From now on it lives without us.
    Result<void> start(Deadline deadline);

    // The placeholder that is the process `pid`, or nothing if that is none.
    static Result<std::optional<Placeholder>> find(pid_t pid);

    pid_t pid() const { return pid_; }
    int pidfd() const { return pidfd_.get(); }
    const std::string& image() const { return image_; }
    // The unit's own user namespace, which the placeholder keeps without living in it; nothing if it has none.
    Result<std::optional<ScopedFd>> user_namespace() const;
    // Of one that systemd has started: it can be told something.
    Result<void> wait_ready(Deadline deadline) const;
    // Takes the numbers; waits until those that could be had are held. Others' are no error.
    Result<void> hold_numbers(Deadline deadline) const;
    // Frees the numbers: they can be had when this returns.
    Result<void> give_back_numbers(Deadline deadline) const;
    // Makes it exit with success; waits for that. One that has gone already is fine.
    Result<void> dismiss(Deadline deadline) const;
    // The same without its consent, for one that was never started.
    Result<void> kill(Deadline deadline) const;

  private:
    Result<void> command(int value) const;
    Result<void> wait_called(const char* name, Deadline deadline) const;
    Result<void> wait_end(Deadline deadline) const;

    pid_t pid_ = 0;
    ScopedFd pidfd_;
    std::string image_;
    ScopedFd gate_;    // a byte lets it begin
    ScopedFd report_;  // says what went wrong; end of file: nothing
};

// The placeholder that is the main process of a unit, if it is suspended.
Result<std::optional<Placeholder>> find_placeholder(Systemd& systemd, const std::string& unit);

}  // namespace checkpointd
