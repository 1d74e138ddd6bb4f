// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/restore/executor/watchdog.h"

#include <csignal>

namespace checkpointd {

Watchdog::Watchdog(std::optional<Clock::time_point> deadline, std::function<void()> bark) {
    if (!deadline)
        return;
    sigset_t all, saved;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &saved);  // inherited by the thread
    thread_ = std::thread([this, at = *deadline, bark = std::move(bark)] { watch(at, bark); });
    pthread_sigmask(SIG_SETMASK, &saved, nullptr);
}

void Watchdog::watch(Clock::time_point deadline, const std::function<void()>& bark) {
    std::unique_lock guard(lock_);
    if (woken_.wait_until(guard, deadline, [this] { return over_; }))
        return;
    barked_ = true;
    bark();
}

Watchdog::~Watchdog() {
    if (!thread_.joinable())
        return;
    {
        std::lock_guard guard(lock_);
        over_ = true;
    }
    woken_.notify_one();
    thread_.join();
}

}  // namespace checkpointd
