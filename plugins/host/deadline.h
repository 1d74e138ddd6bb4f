// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <chrono>
#include <cstdint>

namespace checkpointd {

// Deadlines as plugin.h has them: microseconds of CLOCK_MONOTONIC, which is what libstdc++'s steady_clock reads.
// What is too late for that clock never comes: UINT64_MAX.
inline constexpr auto kLastUsec = static_cast<uint64_t>(
    std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::duration::max()).count());

inline uint64_t deadline_usec(std::chrono::steady_clock::time_point when) {
    const auto usec = static_cast<uint64_t>(
        std::chrono::duration_cast<std::chrono::microseconds>(when.time_since_epoch()).count());
    return usec >= kLastUsec ? UINT64_MAX : usec;
}

inline std::chrono::steady_clock::time_point to_deadline(uint64_t usec) {
    using Time = std::chrono::steady_clock::time_point;
    return usec >= kLastUsec ? Time::max() : Time(std::chrono::microseconds(usec));
}

// So long after `from`; max() is never.
inline std::chrono::steady_clock::time_point deadline_after(std::chrono::steady_clock::time_point from,
                                                            std::chrono::microseconds span) {
    using Time = std::chrono::steady_clock::time_point;
    return span >= std::chrono::duration_cast<std::chrono::microseconds>(Time::max() - from) ? Time::max() : from + span;
}

// So long from now.
inline std::chrono::steady_clock::time_point deadline_in(std::chrono::microseconds span) {
    return deadline_after(std::chrono::steady_clock::now(), span);
}

}  // namespace checkpointd
