// SPDX-License-Identifier: LGPL-2.1-or-later
//
// checkpointd-worker: one job, then it leaves. PID 1 starts `run`, and `recover` when that has ended, however
// it did; the daemon starts `recover` too, and the other verbs.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unistd.h>
#include <vector>

#include <fmt/core.h>

#include "core/base/io.h"
#include "core/inject/loose_thread.h"
#include "core/transaction/journal.h"
#include "core/transaction/undo_kinds.h"
#include "images/image_store.h"
#include "plugins/host/plugins.h"
#include "service/event_loop.h"
#include "service/job_log.h"
#include "service/protocol.h"
#include "service/worker/at_shutdown.h"
#include "service/worker/jobs.h"
#include "service/worker/settle.h"
#include "units/pid_reservation.h"
#include "units/revivable.h"
#include "units/suspend.h"
#include "units/systemd.h"
#include "units/undo.h"
#include "units/watchdog_feeder.h"

namespace checkpointd {
namespace {

UndoTable undo_table() {
    UndoTable table;
    add_core_undo_kinds(table);
    add_mask_undo_kind(table);
    add_unit_undo_kinds(table);
    add_suspend_undo_kinds(table);
    add_settle_undo_kinds(table);
    add_plugin_undo_kinds(table);
    return table;
}

std::string undo_dir(const std::string& job_dir) { return job_dir + "/undo"; }

// How long all of it may take at most; another recovery of the same job may be at it, and is waited for.
Microseconds undo_time(Microseconds of_plugins) {
    constexpr std::chrono::hours kAYear{24 * 365};  // as far as clocks can count
    return std::min<Microseconds>(of_plugins, kAYear) + kUndoTime;
}

// Undoing is not to be cut short: a unit that PID 1 stops has a limit, which was set when nobody knew what there would be
// to undo (service/bus/worker_units.cc). A daemon-reload takes back what is given here (service_coldplug() of systemd), so
// that limit is a generous one. The daemon's recovery, and workers at a shutdown, have none.
void take_time(Microseconds time) {
    if (std::getenv("NOTIFY_SOCKET") != nullptr)
        (void)notify_as(getpid(), fmt::format("EXTEND_TIMEOUT_USEC={}", time.count()));
}

// A program may wait for what it computes on a device, and not feed its watchdog, until all of that was given back.
std::unique_ptr<WatchdogFeeder> feed_meanwhile(const JobRequest& request, Microseconds of_plugins) {
    if (of_plugins == Microseconds(0) || request.type != JobType::kCheckpoint) return nullptr;
    auto systemd = Systemd::connect();
    return systemd ? WatchdogFeeder::make(*systemd, request.unit) : nullptr;
}

Result<JobResult> run_flow(const JobRequest& request, Journal& journal, JobSteps& steps) {
    CKPT_TRY(steps.arm());
    return request.type == JobType::kCheckpoint ? run_checkpoint(request, journal, steps)
                                                : run_restore(request, journal, steps);
}

// A job that fails while it lives takes the way of one that died: what its journal says is undone.
JobResult settle(const JobRequest& request, Result<JobResult> flow, Journal& journal, JobSteps& steps) {
    JobResult result;
    if (flow) result = std::move(*flow);
    else result.error = std::move(flow).error();
    const Microseconds of_plugins = journal.rollback_time();
    if (!journal.empty()) {
        steps.begin_undo(undo_time(of_plugins));
        take_time(undo_time(of_plugins));
    }
    const auto feeder = feed_meanwhile(request, of_plugins);
    auto undone = journal.rollback();
    if (undone) undone = journal.close();
    if (!undone) result.error.causes.push_back(std::move(undone).error());
    return result;
}

Result<std::string> run_job(const std::string& job_dir) {
    CKPT_ASSIGN(const auto request, load_request(job_dir));
    CKPT_ASSIGN(auto earlier, load_result(job_dir));
    if (earlier) return fail(ErrorKind::kConflict, job_dir, "this job has ended already");
    const uint64_t started = monotonic_usec();
    const UndoTable table = undo_table();
    CKPT_ASSIGN(auto journal, Journal::create(undo_dir(job_dir), table));
    log_job_began(request);
    JobSteps steps(request);
    JobResult result = settle(request, run_flow(request, journal, steps), journal, steps);
    result.total_usec = monotonic_usec() - started;
    result.steps = steps.times();
    log_job_ended(request, result);
    CKPT_TRY(store_atomically(job_dir, kResultFile, to_json(result)));
    return std::string();
}

Result<std::string> recover_job(const std::string& job_dir) {
    const UndoTable table = undo_table();
    const std::string directory = undo_dir(job_dir);
    const Microseconds of_plugins = Journal::replay_time(directory, table);
    const Microseconds time = undo_time(of_plugins);
    take_time(time);
    const auto request = load_request(job_dir);
    const auto feeder = request ? feed_meanwhile(*request, of_plugins) : nullptr;
    CKPT_ASSIGN(const bool has_undone,
                Journal::replay(directory, table, std::chrono::ceil<std::chrono::milliseconds>(time)));
    if (has_undone && request) log_job_undone(*request);
    return std::string();
}

Result<std::string> remove_image(const std::string& store_dir, const std::string& image_id) {
    CKPT_ASSIGN(auto id, images::parse_image_id(image_id));
    CKPT_ASSIGN(auto store, images::ImageStore::open(store_dir, false));
    CKPT_TRY(store.remove(id));
    if (auto systemd = Systemd::connect())
        (void)end_reservation(*systemd, image_id);
    return std::string();
}

Result<std::string> check_enable(const std::string& unit) {
    CKPT_ASSIGN(auto systemd, Systemd::connect());
    CKPT_TRY(check_revivable(systemd, unit));
    return std::string();
}

Result<std::string> at_shutdown() {
    CKPT_ASSIGN(std::string program, read_link(AT_FDCWD, "/proc/self/exe"));
    return checkpoint_at_shutdown({.worker = std::move(program)});
}

Result<std::string> dispatch(const std::vector<std::string>& args) {
    if (args.size() == 2 && args[0] == "run") return run_job(args[1]);
    if (args.size() == 2 && args[0] == "recover") return recover_job(args[1]);
    if (args.size() == 3 && args[0] == "explain") return explain_image(args[1], args[2]);
    if (args.size() == 3 && args[0] == "remove-image") return remove_image(args[1], args[2]);
    if (args.size() == 2 && args[0] == "check-enable") return check_enable(args[1]);
    if (args.size() == 1 && args[0] == "at-shutdown") return at_shutdown();
    return fail(ErrorKind::kBadInput, "checkpointd-worker", "is started by checkpointd only",
                "use crctl(1)");
}

}  // namespace
}  // namespace checkpointd

int main(int argc, char** argv) {
    auto answer = checkpointd::dispatch({argv + 1, argv + argc});
    if (answer) {
        std::fwrite(answer->data(), 1, answer->size(), stdout);
        return std::fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
    }
    fmt::print(stderr, "<3>{}\n", answer.error().text());
    fmt::print("{}", checkpointd::to_json(answer.error()));
    return EXIT_FAILURE;
}
