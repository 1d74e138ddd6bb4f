// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/stop.h"

#include <cerrno>
#include <csignal>
#include <unistd.h>
#include <utility>

#include "core/kernel/cgroup.h"
#include "units/drop_in.h"
#include "units/drop_in_file.h"
#include "units/scope.h"
#include "units/undo.h"

namespace checkpointd {

std::string stop_drop_in(const UnitFacts& facts) {
    DropIn text("Written by checkpointd while it stops this unit; removed right after.");
    text.section("Service");
    text.set_quiet_end();
    // With SIGKILL as a success systemd would go on to the next command of a oneshot while it stops.
    if (facts.type == "oneshot") {
        text.set("ExecStart", "");
        text.set("ExecStart", "/bin/true");
    }
    return text.text();
}

CleanStop::CleanStop(Systemd& systemd, Journal& journal, UnitFacts facts)
    : systemd_(systemd), journal_(journal), facts_(std::move(facts)) {}

CleanStop::~CleanStop() {
    (void)cancel();  // what fails stays in the journal
}

Result<void> CleanStop::prepare(Steps& steps) {
    if (facts_.is_scope())
        return {};  // systemd runs nothing of its own for it
    return put_drop_in(systemd_, journal_, facts_.id, stop_drop_in(facts_), "units.stop", steps,
                       drop_in_undo_);
}

Result<void> CleanStop::verify() {
    CKPT_ASSIGN(std::string state, systemd_.text(facts_.id, "Unit", "ActiveState"));
    CKPT_ASSIGN(std::string result, systemd_.text(facts_.id, "Service", "Result"));
    if (state != "inactive" || result != "success")
        return fail(ErrorKind::kSystem, facts_.id,
                    fmt::format("it did not stop cleanly: state {}, result {}", state, result));
    auto left = cgroup_processes(facts_.cgroup_dir);
    if (!left)  // systemd has removed it, as it does with an empty one
        return left.error().errno_code == ENOENT ? Result<void>()
                                                 : tl::unexpected(std::move(left).error());
    if (!left->empty())
        return fail(ErrorKind::kSystem, facts_.id,
                    fmt::format("{} processes survived its stop, pid {} first", left->size(),
                                left->front()));
    return {};
}

Result<void> CleanStop::stop(Steps& steps, Deadline deadline,
                             const std::function<Result<void>()>& reap) {
    if (facts_.is_scope())
        return end_scope(systemd_, facts_, steps, deadline, reap);
    CKPT_TRY(steps.enter("units.stop.stop-unit"));
    CKPT_ASSIGN(await_undo_, undo_by_awaiting_stop(journal_, facts_.id));
    // "replace" would stop the units that require this one, too.
    CKPT_ASSIGN(std::string job, systemd_.stop_unit(facts_.id, "ignore-dependencies"));
    CKPT_TRY(reap());
    CKPT_ASSIGN(std::string result, systemd_.wait_job(job, deadline));
    if (result != "done")
        return fail(ErrorKind::kSystem, facts_.id, fmt::format("systemd's stop job ended: {}", result));
    CKPT_TRY(verify());
    return journal_.drop(std::exchange(await_undo_, 0));
}

Result<void> CleanStop::finish(Steps& steps) {
    // The unit is down: there is no way back from here, so nobody is asked.
    (void)steps.enter("units.stop.remove-drop-in");
    return cancel();
}

Result<void> CleanStop::cancel() {
    // Not before PID 1 is done with the unit: the drop-in makes it a clean end.
    for (uint64_t* undo : {&await_undo_, &drop_in_undo_}) {
        CKPT_TRY(journal_.undo(*undo));
        *undo = 0;
    }
    return {};
}

}  // namespace checkpointd
