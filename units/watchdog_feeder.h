// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <sys/types.h>
#include <thread>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "units/systemd.h"

namespace checkpointd {

// What systemd allows to pass between two messages to the unit's watchdog, in microseconds. 0: it waits for none, and a
// message would make it wait for more.
Result<uint64_t> read_watchdog(Systemd& systemd, const std::string& unit);

// Feeds a unit's watchdog in the place of its main process, which cannot while we hold it: in a thread of its own, because
// what holds the process may take its time in any call. Ends with this object, or with that process.
class WatchdogFeeder {
  public:
    // Null where there is nothing to feed.
    static std::unique_ptr<WatchdogFeeder> make(pid_t main_pid, uint64_t watchdog_usec);
    // The same of a unit as systemd knows it now.
    static std::unique_ptr<WatchdogFeeder> make(Systemd& systemd, const std::string& unit);

    // Calls `feed` at once and then every `interval`, in that thread. `process` is a pidfd.
    WatchdogFeeder(ScopedFd process, std::chrono::milliseconds interval, std::function<void()> feed);
    WatchdogFeeder(const WatchdogFeeder&) = delete;
    WatchdogFeeder& operator=(const WatchdogFeeder&) = delete;
    ~WatchdogFeeder();

  private:
    void run(std::chrono::milliseconds interval, const std::function<void()>& feed) const;

    ScopedFd process_;
    ScopedFd end_;  // an eventfd
    std::thread thread_;
};

}  // namespace checkpointd
