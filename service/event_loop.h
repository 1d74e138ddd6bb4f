// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <poll.h>
#include <vector>

#include "config/policy/duration.h"
#include "core/base/error.h"

namespace checkpointd {

// The daemon's only thread: descriptors, timers and one source that knows its own poll data (the bus).
// Callbacks may add and remove watches and timers, also their own.
class EventLoop {
  public:
    using Callback = std::function<void()>;
    using TimerId = uint64_t;

    // Called before each poll(2): adds descriptors, may lower the deadline (CLOCK_MONOTONIC usec).
    using Prepare = std::function<void(std::vector<pollfd>& fds, uint64_t& deadline_usec)>;

    // Calls `ready` whenever `fd` is readable or hung up. The descriptor stays the caller's.
    void watch(int fd, Callback ready) { watches_[fd] = std::move(ready); }
    void unwatch(int fd) { watches_.erase(fd); }
    // Calls `due` once after `delay`.
    TimerId after(Microseconds delay, Callback due);
    void cancel(TimerId id) { timers_.erase(id); }
    // `dispatch` runs after every poll, whether its descriptors were ready or not.
    void set_source(Prepare prepare, Callback dispatch);

    // Runs until stop().
    Result<void> run();
    void stop() { stopped_ = true; }
    // One round, waiting at most `longest`. For tests that run beside another loop.
    Result<void> run_once(Microseconds longest);

  private:
    struct Timer {
        uint64_t due_usec;
        Callback call;
    };
    uint64_t next_deadline(uint64_t limit) const;
    void fire_timers();
    void fire_watches(const std::vector<pollfd>& fds);

    std::map<int, Callback> watches_;
    std::map<TimerId, Timer> timers_;
    TimerId next_timer_ = 1;
    Prepare prepare_;
    Callback dispatch_;
    bool stopped_ = false;
};

// CLOCK_MONOTONIC and CLOCK_REALTIME in microseconds.
uint64_t monotonic_usec();
uint64_t realtime_usec();

}  // namespace checkpointd
