// SPDX-License-Identifier: LGPL-2.1-or-later
//
// How a traced thread comes to stand in PTRACE_EVENT_STOP. For the thread that traces it.
#pragma once

#include <chrono>
#include <string>
#include <sys/types.h>

#include "core/base/error.h"

namespace checkpointd {

// "pid 7", "pid 7 thread 9".
std::string name_of_thread(pid_t pid, pid_t tid);

// One look at a traced thread that has been told to stop.
struct StopReport {
    enum class State { kRunning, kStopped, kGone } state = State::kRunning;
    int group_signal = 0;  // job control's signal where it is in group-stop
};

// A signal that was on its way in stops the thread before our interrupt does: it goes on to be handled,
// with its siginfo untouched, and the thread stops at the first instruction of its handler.
StopReport look_for_stop(pid_t tid);

// As soon as a thread stands: should we die later, it sees no EINTR without a signal.
void repair_wait(pid_t tid);

// Lets go of it, as soon as it stands where it does not. An end of it is taken (for 200 ms): without that its own
// parent does not hear of it.
void detach_thread(pid_t tid);

}  // namespace checkpointd
