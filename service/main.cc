// SPDX-License-Identifier: LGPL-2.1-or-later
//
// checkpointd: puts the pieces together and runs the loop.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/core.h>

#include "cli/command_line/command_line.h"
#include "dbus/compat.h"
#include "service/bus/manager_object.h"
#include "service/bus/worker_units.h"
#include "service/event_loop.h"
#include "service/job_log.h"
#include "service/process_helpers.h"
#include "service/store_catalog.h"
#include "service/worker_channel.h"

namespace checkpointd {
namespace {

struct Settings {
    ManagerConfig manager;
    std::string worker = CHECKPOINTD_WORKER;
};

// sd-daemon(3): "<3>" makes the journal file it as an error.
void log_error(const Error& error) { fmt::print(stderr, "<3>{}\n", error.text()); }
void log_info(const std::string& text) { fmt::print(stderr, "<6>{}\n", text); }

Result<ScopedFd> block_signals() {
    sigset_t set;
    sigemptyset(&set);
    for (int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&set, signal);
    sigprocmask(SIG_BLOCK, &set, nullptr);
    ScopedFd fd(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
    if (!fd) return fail_errno("signals", "cannot make a signalfd");
    return fd;
}

// SIGHUP reads the policy again; the others end the daemon. Jobs go on: their workers are not ours.
void handle_signals(int fd, Manager& manager, EventLoop& loop) {
    signalfd_siginfo info{};
    while (read(fd, &info, sizeof(info)) == sizeof(info)) {
        if (info.ssi_signo != SIGHUP) {
            loop.stop();
        } else if (auto reloaded = manager.reload_policy(); !reloaded) {
            log_error(reloaded.error());
            log_info("the policy that was in force stays");
        } else {
            log_info("policy reloaded");
        }
    }
}

void attach_bus(EventLoop& loop, bus::Connection& connection) {
    loop.set_source(
        [&connection](std::vector<pollfd>& fds, uint64_t& deadline) {
            const bus::PollData data = bus::poll_data(connection);
            fds.push_back({data.fd, data.events, 0});
            if (data.event_fd >= 0) fds.push_back({data.event_fd, POLLIN, 0});
            deadline = std::min(deadline, data.deadline_usec);
        },
        [&connection] {
            while (bus::process_pending(connection)) {
            }
        });
}

// Gives up the name, then handles what was sent to us before; a call that starts a job keeps us. New
// calls meanwhile make the bus start us again.
bool may_leave(bus::Connection& connection, Manager& manager) {
    connection.releaseName(bus::ServiceName{bus::kService});
    while (bus::process_pending(connection)) {
    }
    if (manager.running() == 0) return true;
    bus::request_name(connection, bus::kService);
    return false;
}

Result<void> serve(const Settings& settings, bus::Connection& connection) {
    EventLoop loop;
    CKPT_ASSIGN(auto signals, block_signals());
    WorkerUnits workers(connection, loop, settings.worker);
    ProcessHelpers helpers(loop, settings.worker, settings.manager.store_dir);
    StoreCatalog catalog(settings.manager.store_dir);
    Manager manager(settings.manager, loop, workers, helpers, catalog);
    ManagerObject object(connection, manager, CHECKPOINTD_VERSION);
    manager.on_death([](const Job& job) { log_job_ended(job.request(), job.result()); });
    CKPT_TRY(manager.start());
    CKPT_ASSIGN(auto channel,
                WorkerChannel::open(settings.manager.channel(), is_worker_of,
                                    [&](const ProgressMessage& message) { manager.progress(message); }));
    loop.watch(channel.fd(), [&] { channel.receive(); });
    loop.watch(signals.get(), [&] { handle_signals(signals.get(), manager, loop); });
    manager.on_idle([&] { may_leave(connection, manager) ? loop.stop() : manager.touch(); });
    attach_bus(loop, connection);
    bus::request_name(connection, bus::kService);
    CKPT_TRY(loop.run());
    manager.observe(nullptr);
    return {};
}

Result<void> run(const Settings& settings) {
    umask(0077);
    auto served = bus::guard("system bus", [&]() -> Result<void> {
        auto connection = bus::open_system();
        return serve(settings, *connection);
    });
    return served ? std::move(*served) : tl::unexpected(std::move(served).error());
}

}  // namespace
}  // namespace checkpointd

int main(int argc, char** argv) {
    checkpointd::Settings settings;
    checkpointd::CommandLine line(
        "checkpointd: takes running units to disk and brings them back.\n"
        "Started by D-Bus or systemd; see checkpointd(8). Use crctl(1) to talk to it.",
        {}, CHECKPOINTD_VERSION);
    line.add_text_with_default("--run-dir", settings.manager.run_dir, "state of jobs");
    line.add_text_with_default("--store", settings.manager.store_dir, "images");
    line.add_text_with_default("--worker", settings.worker, "program that does the jobs");
    line.add_text_with_default("--policy-dir", settings.manager.admin_policy_dir,
                               "administrator's policy");
    if (auto status = line.parse(argc, argv)) return *status;
    auto result = checkpointd::run(settings);
    if (result) return EXIT_SUCCESS;
    checkpointd::log_error(result.error());
    return EXIT_FAILURE;
}
