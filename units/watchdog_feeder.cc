// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/watchdog_feeder.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <poll.h>
#include <sys/eventfd.h>

#include "units/unit_process.h"

namespace checkpointd {

Result<uint64_t> read_watchdog(Systemd& systemd, const std::string& unit) {
    CKPT_ASSIGN(const uint64_t time, systemd.number(unit, "Service", "WatchdogUSec"));
    // Set by the first message at the latest, and while systemd waits: not while the unit starts or stops.
    CKPT_ASSIGN(const uint64_t last, systemd.number(unit, "Service", "WatchdogTimestampMonotonic"));
    return last == 0 || time == UINT64_MAX ? 0 : time;
}

std::unique_ptr<WatchdogFeeder> WatchdogFeeder::make(pid_t main_pid, uint64_t watchdog_usec) {
    using std::chrono::milliseconds;
    if (main_pid <= 0 || watchdog_usec == 0)
        return nullptr;
    auto process = open_pidfd(main_pid);
    if (!process)
        return nullptr;
    constexpr uint64_t kLongest = 60000;
    const milliseconds interval(std::clamp<uint64_t>(watchdog_usec / 3000, 1, kLongest));
    return std::make_unique<WatchdogFeeder>(std::move(*process), interval,
                                            [main_pid] { (void)notify_as(main_pid, "WATCHDOG=1"); });
}

std::unique_ptr<WatchdogFeeder> WatchdogFeeder::make(Systemd& systemd, const std::string& unit) {
    const auto main_pid = systemd.number(unit, "Service", "MainPID");
    const auto time = read_watchdog(systemd, unit);
    return main_pid && time ? make(static_cast<pid_t>(*main_pid), *time) : nullptr;
}

WatchdogFeeder::WatchdogFeeder(ScopedFd process, std::chrono::milliseconds interval, std::function<void()> feed)
    : process_(std::move(process)), end_(eventfd(0, EFD_CLOEXEC)) {
    if (!end_)
        return;
    sigset_t all, saved;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &saved);  // inherited by the thread
    thread_ = std::thread([this, interval, feed = std::move(feed)] { run(interval, feed); });
    pthread_sigmask(SIG_SETMASK, &saved, nullptr);
}

void WatchdogFeeder::run(std::chrono::milliseconds interval, const std::function<void()>& feed) const {
    pollfd ends[] = {{end_.get(), POLLIN, 0}, {process_.get(), POLLIN, 0}};
    int ended = 0;
    while (ended == 0) {
        feed();
        do
            ended = poll(ends, std::size(ends), static_cast<int>(interval.count()));
        while (ended < 0 && errno == EINTR);
    }
}

WatchdogFeeder::~WatchdogFeeder() {
    if (!thread_.joinable())
        return;
    (void)eventfd_write(end_.get(), 1);
    thread_.join();
}

}  // namespace checkpointd
