// SPDX-License-Identifier: LGPL-2.1-or-later
#include "service/bus/worker_units.h"

#include <csignal>
#include <sys/syscall.h>
#include <unistd.h>

#include "service/worker_channel.h"
#include "units/shutdown_order.h"

namespace checkpointd {
namespace {

constexpr const char* kSystemd = "org.freedesktop.systemd1";
constexpr const char* kManager = "org.freedesktop.systemd1.Manager";
constexpr uint64_t kSecond = 1000000;
// After the job's own deadline PID 1 ends the worker, should even its alarm have failed.
constexpr uint64_t kGrace = 60 * kSecond;

uint64_t usec_of(Microseconds span) { return static_cast<uint64_t>(span.count()); }

using ExecEntry = sdbus::Struct<std::string, std::vector<std::string>, bool>;
using Auxiliary = sdbus::Struct<std::string, std::vector<sdbus::Struct<std::string, sdbus::Variant>>>;

Error start_error(const std::string& unit, std::string why) {
    return Error{ErrorKind::kSystem, unit, "PID 1 could not start the worker: " + std::move(why),
                 "see journalctl -u " + unit, 0, {}};
}

}  // namespace

WorkerUnits::WorkerUnits(bus::Connection& connection, EventLoop& loop, std::string program)
    : loop_(loop), connection_(connection), program_(std::move(program)),
      systemd_(bus::make_proxy(connection, kSystemd, "/org/freedesktop/systemd1")) {
    systemd_->uponSignal("JobRemoved")
        .onInterface(kManager)
        .call([this](uint32_t, const sdbus::ObjectPath&, const std::string& unit,
                     const std::string& result) { start_ended(unit, result); });
    bus::finish(*systemd_);
    // PID 1 sends signals only to who subscribed.
    systemd_->callMethodAsync("Subscribe").onInterface(kManager).uponReplyInvoke([](bus::AsyncError) {});
}

WorkerUnits::~WorkerUnits() {
    for (const auto& [job, pidfd] : running_) loop_.unwatch(pidfd.get());
}

std::vector<WorkerUnits::Property> WorkerUnits::properties(const Job& job) const {
    const JobRequest& request = job.request();
    const Microseconds total = request.policy.timeout(Phase::kTotal);
    const uint64_t limit =
        total == kForever ? UINT64_MAX : usec_of(total) + kGrace;
    // A device's driver may be in a call that must not be cut short, and what was moved by its end is moved back then.
    // Where a plugin says that it takes longer, the worker asks for more.
    const Microseconds devices = request.policy.timeout(Phase::kDevices);
    const uint64_t stop = devices == kForever ? UINT64_MAX : usec_of(2 * devices + kUndoTime);
    auto command = [&](const char* verb, bool may_fail) {
        return bus::variant(std::vector<ExecEntry>{
            ExecEntry{program_, std::vector<std::string>{program_, verb, job.dir()}, may_fail}});
    };
    return {
        {"Description", bus::variant("checkpointd job " + std::to_string(job.id()) + ": " +
                                     std::string(to_string(request.type)) + " " + request.unit)},
        {"Documentation", bus::variant(std::vector<std::string>{"man:checkpointd(8)"})},
        // exec: a worker that cannot even be executed is an error of the start, not a silent death.
        {"Type", bus::variant(std::string("exec"))},
        {"ExecStart", command("run", false)},
        // A worker that died is undone also when there is no daemon to do it. Where there is one it does
        // the same at the same time, and whoever comes second waits for the first.
        {"ExecStopPost", command("recover", true)},
        // mixed: the worker alone is asked to stop, and undoes; what is left over is killed.
        {"KillMode", bus::variant(std::string("mixed"))},
        {"TimeoutStopUSec", bus::variant(stop)},
        // The worker and its recovery ask for time (EXTEND_TIMEOUT_USEC=).
        {"NotifyAccess", bus::variant(std::string("exec"))},
        {"RuntimeMaxUSec", bus::variant(limit)},
        {"CollectMode", bus::variant(std::string("inactive-or-failed"))},
        {"Slice", bus::variant(std::string("system.slice"))},
        // A unit may hold more tasks than DefaultTasksMax, and each is born in here before it moves.
        {"TasksMax", bus::variant(static_cast<uint64_t>(UINT64_MAX))},
        {"SyslogIdentifier", bus::variant(std::string("checkpointd-worker"))},
    };
}

void WorkerUnits::start(const Job& job) {
    const std::string unit = worker_unit_name(job.id());
    starting_[unit] = job.id();
    systemd_->callMethodAsync("StartTransientUnit")
        .onInterface(kManager)
        .withArguments(unit, std::string("fail"), properties(job), std::vector<Auxiliary>{})
        .uponReplyInvoke([this, unit](bus::AsyncError error, const sdbus::ObjectPath&) {
            auto found = starting_.find(unit);
            if (!error || found == starting_.end()) return;
            const uint32_t id = found->second;
            starting_.erase(found);
            report_later(id, start_error(unit, error->getMessage()));
        });
}

void WorkerUnits::start_ended(const std::string& unit, const std::string& result) {
    auto found = starting_.find(unit);
    if (found == starting_.end()) return;
    const uint32_t id = found->second;
    starting_.erase(found);
    if (result == "done") return look_up(id);
    report_later(id, start_error(unit, "its start job ended as \"" + result + "\""));
}

void WorkerUnits::adopt(const Job& job) { look_up(job.id()); }

// Asks for the main PID of the job's unit. LoadUnit would make a unit that is not there; GetUnit answers
// with an error, which says that the worker is gone.
void WorkerUnits::look_up(uint32_t job) {
    systemd_->callMethodAsync("GetUnit")
        .onInterface(kManager)
        .withArguments(worker_unit_name(job))
        .uponReplyInvoke([this, job](bus::AsyncError error, const sdbus::ObjectPath& path) {
            if (error) return report_later(job, std::nullopt);
            auto& unit = lookups_[job] = bus::make_proxy(connection_, kSystemd, path);
            unit->callMethodAsync("Get")
                .onInterface("org.freedesktop.DBus.Properties")
                .withArguments(std::string("org.freedesktop.systemd1.Service"), std::string("MainPID"))
                .uponReplyInvoke([this, job](bus::AsyncError failed, const sdbus::Variant& pid) {
                    found_pid(job, failed ? 0 : pid.get<uint32_t>());
                });
        });
}

void WorkerUnits::found_pid(uint32_t job, uint32_t pid) {
    ScopedFd pidfd;
    if (pid != 0) pidfd.reset(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
    // Checked with the pidfd in hand: the number may have a new owner.
    if (!pidfd || !is_worker_of(static_cast<pid_t>(pid), job)) return report_later(job, std::nullopt);
    loop_.watch(pidfd.get(), [this, job] { report_gone(job, std::nullopt); });
    running_[job] = std::move(pidfd);
}

void WorkerUnits::report_later(uint32_t job, std::optional<Error> error) {
    loop_.after(Microseconds(0), [this, job, error = std::move(error)] { report_gone(job, error); });
}

void WorkerUnits::report_gone(uint32_t job, std::optional<Error> error) {
    lookups_.erase(job);
    if (auto found = running_.find(job); found != running_.end()) {
        loop_.unwatch(found->second.get());
        running_.erase(found);
    }
    if (gone_) gone_(job, std::move(error));
}

void WorkerUnits::reload_units(bool at_shutdown) {
    systemd_->callMethodAsync("Reload").onInterface(kManager).uponReplyInvoke(
        [this, at_shutdown](bus::AsyncError) {
            if (!at_shutdown) return;
            systemd_->callMethodAsync("StartUnit")
                .onInterface(kManager)
                .withArguments(std::string(kShutdownUnit), std::string("ignore-dependencies"))
                .uponReplyInvoke([](bus::AsyncError, const sdbus::ObjectPath&) {});
        });
}

void WorkerUnits::cancel(uint32_t job) {
    systemd_->callMethodAsync("KillUnit")
        .onInterface(kManager)
        .withArguments(worker_unit_name(job), std::string("main"), static_cast<int32_t>(SIGTERM))
        .uponReplyInvoke([](bus::AsyncError) {});
}

}  // namespace checkpointd
