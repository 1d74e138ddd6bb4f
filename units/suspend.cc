// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/suspend.h"

#include <fcntl.h>
#include <unistd.h>

#include "core/base/io.h"
#include "core/kernel/proc_task.h"
#include "units/drop_in.h"
#include "units/drop_in_file.h"
#include "units/pid_reservation.h"
#include "units/suspend_undo.h"
#include "units/unit_process.h"

namespace checkpointd {
namespace {

Result<ScopedFd> take_external(const UnitFacts& facts, const std::vector<pid_t>& pids,
                               const UnitExternal& external) {
    if (external.kind == ExternalKind::kStdio) {
        CKPT_ASSIGN(ScopedFd main, open_pidfd(facts.main_pid));
        return take_descriptor(main.get(), static_cast<int>(external.index), facts.id);
    }
    for (pid_t pid : pids)
        for (int fd : read_descriptor_list(pid).value_or(std::vector<int>())) {
            auto target = read_link(AT_FDCWD, fmt::format("/proc/{}/fd/{}", pid, fd));
            if (!target || *target != external.key)
                continue;
            CKPT_ASSIGN(ScopedFd owner, open_pidfd(pid));
            return take_descriptor(owner.get(), fd, fmt::format("pid {}", pid));
        }
    return fail(ErrorKind::kGone, facts.id, fmt::format("nobody has {} any more", external.key));
}

std::string access_drop_in() {
    DropIn text("Written by checkpointd while it changes this unit's main process; removed right after.");
    text.section("Service");
    text.set("NotifyAccess", "all");
    return text.text();
}

}  // namespace

Result<void> put_access_drop_in(Systemd& systemd, Journal& journal, const std::string& unit,
                                std::string_view prefix, Steps& steps, uint64_t& undo_id) {
    CKPT_ASSIGN(const auto listens, systemd.text(unit, "Service", "NotifyAccess"));
    if (std::string_view(listens) != "none")
        return {};
    return put_drop_in(systemd, journal, unit, access_drop_in(), prefix, steps, undo_id);
}

Suspension::~Suspension() {
    (void)cancel();  // what fails stays in the journal
}

Result<void> Suspension::prepare(const UnitFacts& facts, Steps& steps) {
    return put_access_drop_in(systemd_, journal_, facts.id, "units.suspend", steps, drop_in_undo_);
}

Result<void> Suspension::put_placeholder(const UnitFacts& facts, const std::vector<pid_t>& pids,
                                         const std::string& image, Steps& steps, Deadline deadline) {
    facts_ = facts;
    CKPT_TRY(steps.enter("units.suspend.placeholder"));
    std::vector<ScopedFd> held;
    PlaceholderPlan plan;
    for (const UnitExternal& external : facts.externals) {
        CKPT_ASSIGN(ScopedFd fd, take_external(facts, pids, external));
        plan.held.push_back(fd.get());
        held.push_back(std::move(fd));
    }
    CKPT_ASSIGN(ScopedFd cgroup, open_at(AT_FDCWD, facts.cgroup_dir, O_RDONLY | O_DIRECTORY));
    CKPT_ASSIGN(uint64_t end_signal, systemd_.number(facts.id, "Service", "KillSignal"));
    plan.image = image;
    plan.main_pid = facts.main_pid;
    plan.cgroup_fd = cgroup.get();
    plan.numbers = numbers_of(pids);
    plan.end_signal = static_cast<int>(end_signal);
    plan.watchdog_usec = facts.watchdog_usec / 3;
    CKPT_ASSIGN(auto placeholder, Placeholder::prepare(plan));
    placeholder_.emplace(std::move(placeholder));
    CKPT_ASSIGN(placeholder_undo_,
                undo_by_taking_back(journal_, {facts.id, facts.cgroup_dir, placeholder_->pid(),
                                               facts.main_pid, facts.status_text}));
    CKPT_TRY(placeholder_->start(deadline));
    CKPT_TRY(steps.enter("units.suspend.main-pid"));
    return announce(deadline);
}

Result<void> Suspension::announce(Deadline deadline) {
    CKPT_TRY(notify_as(facts_.main_pid, fmt::format("MAINPID={}\nSTATUS=Suspended by checkpointd",
                                                    placeholder_->pid())));
    return poll_until(deadline, facts_.id, "systemd did not accept the placeholder",
                      [&]() -> Result<bool> {
                          CKPT_ASSIGN(uint64_t now, systemd_.number(facts_.id, "Service", "MainPID"));
                          return now == static_cast<uint64_t>(placeholder_->pid());
                      });
}

Result<void> Suspension::end_tasks(Steps& steps, Deadline deadline,
                                   const std::function<Result<void>()>& end) {
    CKPT_TRY(steps.enter("units.suspend.end-tasks"));
    CKPT_TRY(end());
    CKPT_TRY(steps.enter("units.suspend.hold-numbers"));
    // Should it take too long, it goes on by itself: no reason to call this failed.
    (void)placeholder_->hold_numbers(deadline);
    CKPT_TRY(journal_.drop(placeholder_undo_));
    placeholder_undo_ = 0;
    return {};
}

Result<void> Suspension::finish(Steps& steps) {
    // There is no way back from here, so nobody is asked.
    if (drop_in_undo_ != 0) {
        (void)steps.enter("units.suspend.remove-drop-in");
        return cancel();
    }
    // As the reload above does, this one gives the unit its gate: it may be stopped and started at any time.
    if (facts_.transient)
        return {};
    (void)steps.enter("units.suspend.make-gate");
    return systemd_.reload();
}

Result<void> Suspension::cancel() {
    for (uint64_t* undo : {&placeholder_undo_, &drop_in_undo_}) {
        if (*undo != 0)
            CKPT_TRY(journal_.undo(*undo));
        *undo = 0;
    }
    return {};
}

}  // namespace checkpointd
