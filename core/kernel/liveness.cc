// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/kernel/liveness.h"

#include <chrono>
#include <csignal>
#include <thread>
#include <utility>

#include "core/kernel/proc_stat.h"
#include "core/kernel/proc_status.h"

namespace checkpointd {
namespace {

constexpr std::chrono::seconds kPatience{30};
constexpr std::chrono::milliseconds kPollInterval{10};
constexpr uint32_t kExiting = 4;  // PF_EXITING of include/linux/sched.h
constexpr uint64_t kKillBit = uint64_t{1} << (SIGKILL - 1);

enum class Life { kRuns, kDies, kDead };

// SIGKILL is sent in an instant; freeing a large memory takes a while, in which the process is still there.
Life look_at(pid_t pid, uint64_t start_time) {
    auto stat = read_stat(pid);
    auto status = read_status(pid);
    if (!stat || !status || stat->start_time != start_time)
        return Life::kDead;
    if (stat->state == 'Z' || stat->state == 'X')
        return Life::kDead;
    const uint64_t pending = status->sig_pending | status->shared_sig_pending;
    return (stat->flags & kExiting) || (pending & kKillBit) ? Life::kDies : Life::kRuns;
}

}  // namespace

Result<bool> process_lives(pid_t pid, uint64_t start_time) {
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    // Twice the same answer: between taking SIGKILL and beginning to exit a process looks alive.
    for (Life last = Life::kDies;;) {
        const Life now = look_at(pid, start_time);
        const Life before = std::exchange(last, now);
        if (now == Life::kDead)
            return false;
        if (now == Life::kRuns && before == now)
            return true;
        if (std::chrono::steady_clock::now() > deadline)
            return fail(ErrorKind::kTimeout, fmt::format("pid {}", pid), "was killed and does not die");
        std::this_thread::sleep_for(kPollInterval);
    }
}

}  // namespace checkpointd
