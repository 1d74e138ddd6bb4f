// SPDX-License-Identifier: LGPL-2.1-or-later
#include "service/event_loop.h"

#include <algorithm>
#include <cerrno>
#include <ctime>

namespace checkpointd {
namespace {

uint64_t clock_usec(clockid_t clock) {
    timespec now{};
    clock_gettime(clock, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1000000u + static_cast<uint64_t>(now.tv_nsec) / 1000u;
}

timespec to_timespec(uint64_t usec) {
    return {static_cast<time_t>(usec / 1000000), static_cast<long>(usec % 1000000 * 1000)};
}

}  // namespace

uint64_t monotonic_usec() { return clock_usec(CLOCK_MONOTONIC); }
uint64_t realtime_usec() { return clock_usec(CLOCK_REALTIME); }

EventLoop::TimerId EventLoop::after(Microseconds delay, Callback due) {
    const uint64_t at =
        delay == kForever ? UINT64_MAX : monotonic_usec() + static_cast<uint64_t>(delay.count());
    timers_[next_timer_] = Timer{at, std::move(due)};
    return next_timer_++;
}

void EventLoop::set_source(Prepare prepare, Callback dispatch) {
    prepare_ = std::move(prepare);
    dispatch_ = std::move(dispatch);
}

uint64_t EventLoop::next_deadline(uint64_t limit) const {
    for (const auto& [id, timer] : timers_) limit = std::min(limit, timer.due_usec);
    return limit;
}

void EventLoop::fire_timers() {
    const uint64_t now = monotonic_usec();
    std::vector<TimerId> due;
    for (const auto& [id, timer] : timers_)
        if (timer.due_usec <= now) due.push_back(id);
    for (TimerId id : due) {
        auto found = timers_.find(id);
        if (found == timers_.end()) continue;  // an earlier callback cancelled it
        Callback call = std::move(found->second.call);
        timers_.erase(found);
        call();
    }
}

void EventLoop::fire_watches(const std::vector<pollfd>& fds) {
    for (const pollfd& entry : fds) {
        if (entry.revents == 0) continue;
        auto found = watches_.find(entry.fd);
        if (found == watches_.end()) continue;
        Callback call = found->second;  // a copy: the callback may remove its own watch
        call();
    }
}

Result<void> EventLoop::run_once(Microseconds longest) {
    std::vector<pollfd> fds;
    for (const auto& [fd, call] : watches_) fds.push_back({fd, POLLIN, 0});
    uint64_t deadline = UINT64_MAX;
    if (longest != kForever) deadline = monotonic_usec() + static_cast<uint64_t>(longest.count());
    if (prepare_) prepare_(fds, deadline);
    deadline = next_deadline(deadline);
    const uint64_t now = monotonic_usec();
    const timespec wait = to_timespec(deadline > now ? deadline - now : 0);
    if (ppoll(fds.data(), fds.size(), deadline == UINT64_MAX ? nullptr : &wait, nullptr) < 0 &&
        errno != EINTR)
        return fail_errno("event loop", "cannot poll");
    fire_watches(fds);
    if (dispatch_) dispatch_();
    fire_timers();
    return {};
}

Result<void> EventLoop::run() {
    while (!stopped_) CKPT_TRY(run_once(kForever));
    return {};
}

}  // namespace checkpointd
