// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/cold_start.h"

#include <cerrno>
#include <fcntl.h>
#include <sys/syscall.h>
#include <thread>
#include <unistd.h>

#include "core/base/io.h"
#include "core/kernel/liveness.h"
#include "core/kernel/proc_stat.h"
#include "units/drop_in.h"
#include "units/gate.h"
#include "units/stage.h"
#include "units/undo.h"

namespace checkpointd {
namespace {

constexpr auto kPatience = std::chrono::seconds(60);
constexpr auto kPollInterval = std::chrono::milliseconds(20);

// Where a unit is whose revival came to nothing.
enum class Place {
    kMoving,   // PID 1 is at work: it will be somewhere else in a moment
    kAtGate,   // nothing of it runs yet
    kOnStage,  // our helper is in the place of its program
    kFailed,   // what was on the stage died
    kOnItsOwn  // it runs its own program, or somebody stopped it
};

Place place_of_process(pid_t pid) {
    auto stat = read_stat(pid);
    if (!stat || !process_lives(pid, stat->start_time).value_or(false))
        return Place::kMoving;
    std::string program = read_link(AT_FDCWD, fmt::format("/proc/{}/exe", pid)).value_or("");
    if (program == StageOptions{}.helper)
        return Place::kOnStage;
    // Before exec(2) it is PID 1's own child: systemd itself, or its executor (systemd 255).
    bool before_exec = program.empty() || program.ends_with("/systemd") ||
                       program.ends_with("/systemd-executor");
    return before_exec ? Place::kMoving : Place::kOnItsOwn;
}

Result<Place> place_at_rest(Systemd& systemd, const std::string& unit, const std::string& state) {
    if (state == "failed")
        return Place::kFailed;
    CKPT_ASSIGN(bool has_job, systemd.has_job(unit));
    if (has_job)
        return Place::kMoving;
    // Whoever stops a unit on the stage ends the helper by its KillSignal=, which counts as success.
    CKPT_ASSIGN(std::string result, systemd.text(unit, "Service", "Result"));
    return result == "success" ? Place::kOnItsOwn : Place::kFailed;
}

Result<Place> find_place(Systemd& systemd, const std::string& unit) {
    CKPT_ASSIGN(std::string state, systemd.text(unit, "Unit", "ActiveState"));
    if (state == "inactive" || state == "failed")
        return place_at_rest(systemd, unit, state);
    if (state == "deactivating")
        return Place::kMoving;
    CKPT_ASSIGN(ScopedFd gate, find_gate(systemd, unit));
    if (gate)
        return Place::kAtGate;
    for (const char* property : {"MainPID", "ControlPID"}) {
        CKPT_ASSIGN(uint64_t pid, systemd.number(unit, "Service", property));
        if (pid != 0)
            return place_of_process(static_cast<pid_t>(pid));
    }
    return state == "active" ? Place::kOnItsOwn : Place::kMoving;
}

// The same answer twice: PID 1 may be between two of them.
Result<Place> settled_place(Systemd& systemd, const std::string& unit) {
    auto deadline = std::chrono::steady_clock::now() + kPatience;
    Place before = Place::kMoving;
    for (;;) {
        CKPT_ASSIGN(Place now, find_place(systemd, unit));
        if (now != Place::kMoving && now == before)
            return now;
        before = now;
        if (std::chrono::steady_clock::now() > deadline)
            return fail(ErrorKind::kTimeout, unit, "systemd does not come to an end with its start");
        std::this_thread::sleep_for(kPollInterval);
    }
}

Result<void> let_pass(Systemd& systemd, const std::string& unit) {
    CKPT_ASSIGN(ScopedFd gate, find_gate(systemd, unit));
    if (gate && syscall(SYS_pidfd_send_signal, gate.get(), kGateCold, nullptr, 0) != 0 && errno != ESRCH)
        return fail_errno(unit, "cannot tell its gate to let it pass");
    return {};
}

// "ignore-requirements" keeps the order of the units that wait for this one (of jobs that are merged the
// ordering counts only if both have it), and leaves those alone that would be restarted along with it.
Result<void> start_anew(Systemd& systemd, const std::string& unit) {
    auto job = systemd.restart_unit(unit, "ignore-requirements");
    // While the system shuts down PID 1 starts nothing any more.
    if (!job && job.error().kind != ErrorKind::kConflict)
        return tl::unexpected(std::move(job).error());
    return {};
}

}  // namespace

Result<uint64_t> undo_by_cold_start(Journal& journal, const std::string& unit,
                                    const std::string& reason) {
    return journal.add(kColdStart, {unit, reason});
}

Result<void> run_cold_start(const UndoArgs& args) {
    if (args.size() != 2 || !is_valid_unit_name(args[0]))
        return fail(ErrorKind::kInternal, kColdStart, "wrong arguments in the journal");
    const std::string& unit = args[0];
    CKPT_ASSIGN(Systemd systemd, Systemd::connect());
    // The next gate must not come to us again.
    CKPT_TRY(note_cold_start(unit, args[1]));
    CKPT_TRY(remove_drop_in(systemd, unit));
    CKPT_ASSIGN(Place place, settled_place(systemd, unit));
    switch (place) {
        case Place::kAtGate: return let_pass(systemd, unit);
        case Place::kOnStage: return start_anew(systemd, unit);
        case Place::kFailed: CKPT_TRY(systemd.reset_failed(unit)); return start_anew(systemd, unit);
        case Place::kMoving:
        case Place::kOnItsOwn: break;
    }
    (void)take_cold_note(unit);
    return {};
}

}  // namespace checkpointd
