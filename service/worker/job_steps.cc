// SPDX-License-Identifier: LGPL-2.1-or-later
#include "service/worker/job_steps.h"

#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <utility>

#include <fmt/core.h>

#include "plugins/host/deadline.h"
#include "service/event_loop.h"

namespace checkpointd {
namespace {

// A step that notices its deadline itself gets this much longer before the alarm ends the process.
constexpr uint64_t kAlarmGrace = 5000000;
constexpr uint64_t kReportInterval = 50000;

struct Entry {
    std::string_view prefix;
    Phase phase;
    double progress;
};

// The longest prefix wins. From a step that moves memory to the next one progress follows the bytes; what comes
// between two of those shows as much as the first.
constexpr double kMemoryShare = 0.6;
constexpr double kLateShare = 0.02;  // of devices that are resumed
constexpr std::array kCheckpoint{
    Entry{"checkpoint.", Phase::kCollect, 0.10},
    Entry{"checkpoint.resolve", Phase::kPrepare, 0.00},
    Entry{"checkpoint.create-image", Phase::kPrepare, 0.02},
    Entry{"units.stop.", Phase::kPrepare, 0.03},
    Entry{"checkpoint.tell", Phase::kTell, 0.06},
    Entry{"checkpoint.probe-devices", Phase::kDevices, 0.06},
    Entry{"checkpoint.quiesce", Phase::kDevices, 0.06},
    Entry{"checkpoint.devices", Phase::kDevices, 0.09},
    Entry{"checkpoint.freeze", Phase::kFreeze, 0.07},
    Entry{"checkpoint.seize", Phase::kFreeze, 0.08},
    Entry{"checkpoint.collect", Phase::kCollect, 0.10},
    Entry{"checkpoint.fork", Phase::kMemory, 0.18},
    Entry{"checkpoint.write", Phase::kMemory, 0.18},
    Entry{"checkpoint.memory", Phase::kMemory, 0.20},
    Entry{"checkpoint.finish", Phase::kMemory, 0.20},
    Entry{"checkpoint.unit-files", Phase::kCommit, 0.20},
    Entry{"checkpoint.resume-devices", Phase::kDevices, 0.20},
    Entry{"checkpoint.go-on", Phase::kCommit, 0.20},
    Entry{"checkpoint.copies", Phase::kMemory, 0.20},
    Entry{"checkpoint.metadata", Phase::kCommit, 0.84},
    Entry{"checkpoint.commit", Phase::kCommit, 0.85},
    Entry{"units.stop.stop-unit", Phase::kStop, 0.92},
    Entry{"units.stop.wait", Phase::kStop, 0.93},
    Entry{"units.suspend.", Phase::kPrepare, 0.03},
    Entry{"units.suspend.placeholder", Phase::kStop, 0.92},
    Entry{"units.suspend.main-pid", Phase::kStop, 0.93},
    Entry{"units.suspend.end-tasks", Phase::kStop, 0.94},
    Entry{"units.suspend.hold-numbers", Phase::kStop, 0.94},
    Entry{"units.suspend.remove-drop-in", Phase::kStop, 0.97},
    Entry{"units.suspend.make-gate", Phase::kStop, 0.97},
    Entry{"checkpoint.mark-ready", Phase::kStop, 0.95},
    Entry{"checkpoint.reserve-pids", Phase::kStop, 0.96},
    Entry{"units.stop.remove-drop-in", Phase::kStop, 0.97},
    Entry{"checkpoint.retention", Phase::kCommit, 0.99},
};
constexpr std::array kRestore{
    Entry{"restore.", Phase::kRebuild, 0.35},
    Entry{"restore.open", Phase::kPrepare, 0.00},
    Entry{"restore.verify", Phase::kPrepare, 0.05},
    Entry{"restore.fresh", Phase::kPrepare, 0.15},
    Entry{"units.stage.", Phase::kStart, 0.20},
    Entry{"units.resume.", Phase::kStart, 0.20},
    Entry{"units.resume.check-main", Phase::kStart, 0.92},
    Entry{"units.resume.main-pid", Phase::kStart, 0.94},
    Entry{"units.resume.remove-drop-in", Phase::kStart, 0.96},
    Entry{"restore.unit-files", Phase::kRebuild, 0.30},
    Entry{"restore.devices", Phase::kDevices, 0.36},
    Entry{"restore.complete-devices", Phase::kDevices, 0.86},
    Entry{"restore.verify-pages", Phase::kRebuild, 0.87},
    Entry{"restore.resume-devices", Phase::kDevices, 0.88},
    Entry{"restore.commit", Phase::kRebuild, 0.90},
    Entry{"units.hand-over.", Phase::kStart, 0.92},
    Entry{"restore.mark-consumed", Phase::kCommit, 0.93},
    Entry{"restore.tell", Phase::kStart, 0.95},
};

template <size_t N>
StepPlace find_place(const std::array<Entry, N>& table, std::string_view step) {
    const Entry* best = nullptr;
    for (const Entry& entry : table)
        if (step.starts_with(entry.prefix) && (!best || entry.prefix.size() > best->prefix.size()))
            best = &entry;
    return best ? StepPlace{best->phase, best->progress} : StepPlace{Phase::kTotal, 0};
}

uint64_t add_span(uint64_t from, Microseconds span) {
    return span == kForever ? UINT64_MAX : from + static_cast<uint64_t>(span.count());
}

}  // namespace

StepPlace place_of(JobType type, std::string_view step) {
    return type == JobType::kCheckpoint ? find_place(kCheckpoint, step) : find_place(kRestore, step);
}

JobSteps::JobSteps(const JobRequest& request)
    : request_(request), sender_(request.channel), started_usec_(monotonic_usec()),
      total_deadline_(add_span(started_usec_, request.policy.timeout(Phase::kTotal))) {
    message_.job = request.id;
}

JobSteps::~JobSteps() {
    if (armed_) timer_delete(alarm_);
}

Result<void> JobSteps::arm() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, nullptr);
    cancel_.reset(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
    if (!cancel_) return fail_errno("job", "cannot make a signalfd");
    // SIGALRM keeps its default action, which ends the process; a child does not inherit the timer.
    sigevent event{};
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGALRM;
    if (timer_create(CLOCK_MONOTONIC, &event, &alarm_) < 0)
        return fail_errno("job", "cannot make a timer");
    armed_ = true;
    return {};
}

Result<void> JobSteps::enter(std::string_view step) {
    begin_step(step);
    CKPT_TRY(check_cancelled(step));
    CKPT_TRY(check_deadline(step));
    return inject(step);
}

void JobSteps::begin_step(std::string_view step) {
    std::lock_guard lock(mutex_);
    const uint64_t now = monotonic_usec();
    if (!times_.empty()) times_.back().usec = now - step_started_;
    times_.push_back({std::string(step), 0});
    step_started_ = now;
    given_back_by_ = 0;
    const StepPlace place = place_of(request_.type, step);
    if (place.phase != phase_) {
        phase_ = place.phase;
        phase_deadline_ = add_span(now, request_.policy.timeout(phase_));
    }
    message_.step = step;
    has_moved_ = false;
    message_.progress = std::max(message_.progress, place.progress);
    const uint64_t deadline = std::min(phase_deadline_, total_deadline_);
    message_.deadline_usec = deadline == UINT64_MAX ? 0 : deadline;
    set_alarm();
    report();
}

Result<void> JobSteps::check_cancelled(std::string_view step) {
    // Not read: plugins poll it as well, and whoever comes next must see it, too.
    pollfd entry{cancel_.get(), POLLIN, 0};
    if (committed_ || !cancel_ || poll(&entry, 1, 0) <= 0)
        return {};
    return fail(ErrorKind::kCancelled, request_.unit,
                fmt::format("the job was cancelled before step {}", step));
}

Result<void> JobSteps::check_deadline(std::string_view step) {
    std::lock_guard lock(mutex_);
    if (committed_ || monotonic_usec() < std::min(phase_deadline_, total_deadline_)) return {};
    const Phase which = total_deadline_ <= phase_deadline_ ? Phase::kTotal : phase_;
    return fail(ErrorKind::kTimeout, request_.unit,
                fmt::format("timeout \"{}\" ({}) passed before step {}", to_string(which),
                            format_duration(request_.policy.timeout(which)), step),
                fmt::format("raise timeouts.{} in the policy", to_string(which)));
}

Result<void> JobSteps::inject(std::string_view step) {
    if (!request_.fault || request_.fault->step != step) return {};
    const std::string object = fmt::format("step {}", step);
    switch (request_.fault->action) {
        case Fault::Action::kFail: return fail_errno(object, "injected fault", EIO);
        case Fault::Action::kEnospc: return fail_errno(object, "injected fault", ENOSPC);
        case Fault::Action::kKill: kill(getpid(), SIGKILL); break;
        case Fault::Action::kStop:  // goes on when it is continued, also where the step comes again
            if (!std::exchange(halted_, true)) kill(getpid(), SIGSTOP);
            return {};
        case Fault::Action::kHang: break;
    }
    for (;;) pause();  // until SIGKILL, or until the alarm of the phase
}

// An alarm that is due the moment the deadline and its grace are over. Held under the lock.
void JobSteps::set_alarm() {
    if (!armed_) return;
    const uint64_t deadline = std::max(std::min(phase_deadline_, total_deadline_), given_back_by_);
    itimerspec when{};  // zero disarms
    if (deadline < UINT64_MAX - kAlarmGrace) {
        const uint64_t at = deadline + kAlarmGrace;
        when.it_value = {static_cast<time_t>(at / 1000000), static_cast<long>(at % 1000000 * 1000)};
    }
    timer_settime(alarm_, TIMER_ABSTIME, &when, nullptr);
}

void JobSteps::moved(uint64_t done, uint64_t total) {
    std::lock_guard lock(mutex_);
    message_.bytes = done;
    message_.bytes_total = total;
    const double start = place_of(request_.type, message_.step).progress;
    const double share = total ? static_cast<double>(done) / static_cast<double>(total) : 0;
    const double share_of_job = start > 0.5 ? kLateShare : request_.type == JobType::kCheckpoint ? kMemoryShare : 0.5;
    message_.progress = std::max(message_.progress, start + share_of_job * std::min(share, 1.0));
    const bool is_much = !has_moved_ || done >= reported_ + total / 10;
    has_moved_ = true;
    if (done == total || is_much || monotonic_usec() - last_report_ >= kReportInterval) report();
}

void JobSteps::giving_back(Microseconds most) {
    std::lock_guard lock(mutex_);
    given_back_by_ = add_span(monotonic_usec(), most);
    set_alarm();
}

void JobSteps::report() {
    last_report_ = monotonic_usec();
    reported_ = message_.bytes;
    sender_.send(message_);
}

void JobSteps::no_way_back() { committed_ = true; }

void JobSteps::begin_undo(Microseconds time) {
    std::lock_guard lock(mutex_);
    phase_deadline_ = total_deadline_ = add_span(monotonic_usec(), time);
    set_alarm();
}

std::chrono::steady_clock::time_point JobSteps::deadline_of(Phase phase) const {
    using std::chrono::steady_clock;
    std::lock_guard lock(mutex_);
    const uint64_t now = monotonic_usec();
    const uint64_t phase_end = phase == phase_ ? phase_deadline_ : add_span(now, request_.policy.timeout(phase));
    const uint64_t at = std::min(phase_end, total_deadline_);
    if (at == UINT64_MAX) return steady_clock::now() + std::chrono::hours(24 * 365);
    return steady_clock::now() + std::chrono::microseconds(at > now ? at - now : 0);
}

std::chrono::steady_clock::time_point JobSteps::deadline() const {
    std::lock_guard lock(mutex_);
    return to_deadline(std::min(phase_deadline_, total_deadline_));
}

std::vector<StepTime> JobSteps::times() const {
    std::lock_guard lock(mutex_);
    std::vector<StepTime> times = times_;
    if (!times.empty()) times.back().usec = monotonic_usec() - step_started_;
    return times;
}

}  // namespace checkpointd
