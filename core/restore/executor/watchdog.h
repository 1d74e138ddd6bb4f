// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

namespace checkpointd {

// Does something when a deadline passes while this object lives. waitid(2) knows no time-out, and a system
// call of a restored task may hang for ever (a file system whose server is gone).
class Watchdog {
  public:
    using Clock = std::chrono::steady_clock;

    // `bark` runs at most once, in a thread of its own with all signals blocked.
    Watchdog(std::optional<Clock::time_point> deadline, std::function<void()> bark);
    Watchdog(const Watchdog&) = delete;
    Watchdog& operator=(const Watchdog&) = delete;
    ~Watchdog();

    bool has_barked() const { return barked_; }

  private:
    void watch(Clock::time_point deadline, const std::function<void()>& bark);

    std::mutex lock_;
    std::condition_variable woken_;
    bool over_ = false;
    std::atomic<bool> barked_ = false;
    std::thread thread_;
};

}  // namespace checkpointd
