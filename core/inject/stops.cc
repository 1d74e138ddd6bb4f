// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/inject/stops.h"

#include <fmt/core.h>
#include <linux/ptrace.h>
#include <sys/wait.h>
#include <thread>

#include "core/arch/x86_64/restart.h"
#include "core/kernel/ptrace.h"

namespace checkpointd {

std::string name_of_thread(pid_t pid, pid_t tid) {
    return tid == pid ? fmt::format("pid {}", pid) : fmt::format("pid {} thread {}", pid, tid);
}

StopReport look_for_stop(pid_t tid) {
    int status = 0;
    const pid_t got = waitpid(tid, &status, __WALL | WNOHANG);
    if (got == 0)
        return {};
    if (got < 0 || !WIFSTOPPED(status))
        return {StopReport::State::kGone, 0};
    const int signal = WSTOPSIG(status);
    if (status >> 16 == PTRACE_EVENT_STOP)
        return {StopReport::State::kStopped, signal == SIGTRAP ? 0 : signal};
    (void)ptrace_cont(tid, status >> 16 == 0 ? signal : 0);
    return {};
}

void repair_wait(pid_t tid) {
    Result<user_regs_struct> regs = ptrace_get_regs(tid);
    if (regs && repair_spurious_eintr(*regs))
        (void)ptrace_set_regs(tid, *regs);
}

void detach_thread(pid_t tid) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(200);
    for (;;) {
        const Result<void> detached = ptrace_detach(tid);
        if (detached || detached.error().kind != ErrorKind::kGone)
            return;
        // It has died, or runs. A signal that stops it goes on its way, and it is not ours before that.
        if (look_for_stop(tid).state == StopReport::State::kGone || std::chrono::steady_clock::now() >= deadline)
            return;
        std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
}

}  // namespace checkpointd
