// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/resources/timers.h"

#include <csignal>
#include <ctime>
#include <sys/syscall.h>
#include <sys/time.h>

#include "core/kernel/proc_task.h"

namespace checkpointd {
namespace {

Result<void> dump_interval_timer(int which, RemoteSyscalls& remote, images::itimer_entry& out) {
    itimerval value{};
    CKPT_TRY(remote.call_out(SYS_getitimer, {which, RemoteSyscalls::kOut}, value));
    out.set_isec(static_cast<uint64_t>(value.it_interval.tv_sec));
    out.set_iusec(static_cast<uint64_t>(value.it_interval.tv_usec));
    out.set_vsec(static_cast<uint64_t>(value.it_value.tv_sec));
    out.set_vusec(static_cast<uint64_t>(value.it_value.tv_usec));
    return {};
}

Result<void> dump_posix_timer(const ProcTimer& timer, pid_t image_thread, RemoteSyscalls& remote,
                              images::posix_timer_entry& out) {
    itimerspec value{};
    CKPT_TRY(remote.call_out(SYS_timer_gettime, {timer.id, RemoteSyscalls::kOut}, value));
    CKPT_ASSIGN(uint64_t overrun, remote.call(SYS_timer_getoverrun, {timer.id}));
    out.set_it_id(static_cast<uint32_t>(timer.id));
    out.set_clock_id(static_cast<uint32_t>(timer.clock));
    out.set_si_signo(static_cast<uint32_t>(timer.signal));
    out.set_it_sigev_notify(static_cast<uint32_t>(timer.notify));
    out.set_sival_ptr(timer.value);
    out.set_overrun(static_cast<uint32_t>(overrun));
    out.set_isec(static_cast<uint64_t>(value.it_interval.tv_sec));
    out.set_insec(static_cast<uint64_t>(value.it_interval.tv_nsec));
    out.set_vsec(static_cast<uint64_t>(value.it_value.tv_sec));
    out.set_vnsec(static_cast<uint64_t>(value.it_value.tv_nsec));
    if (timer.notify & SIGEV_THREAD_ID)
        out.set_notify_thread_id(image_thread);
    return {};
}

}  // namespace

Result<void> dump_timers(pid_t pid, const std::function<pid_t(pid_t)>& image_tid,
                         RemoteSyscalls& remote, images::task_timers_entry& out) {
    CKPT_TRY(dump_interval_timer(ITIMER_REAL, remote, *out.mutable_real()));
    CKPT_TRY(dump_interval_timer(ITIMER_VIRTUAL, remote, *out.mutable_virt()));
    CKPT_TRY(dump_interval_timer(ITIMER_PROF, remote, *out.mutable_prof()));
    CKPT_ASSIGN(std::vector<ProcTimer> timers, read_timers(pid));
    // The kernel lists the youngest first; equal deadlines expire in the order of creation.
    for (auto timer = timers.rbegin(); timer != timers.rend(); ++timer)
        CKPT_TRY(dump_posix_timer(*timer, image_tid(timer->thread), remote, *out.add_posix()));
    return {};
}

}  // namespace checkpointd
