// SPDX-License-Identifier: LGPL-2.1-or-later
#include <fcntl.h>
#include <utility>

#include "core/base/io.h"
#include "core/kernel/cgroup.h"
#include "units/suspend.h"
#include "units/suspend_undo.h"
#include "units/unit_process.h"

namespace checkpointd {

SuspendedUnit::SuspendedUnit(Systemd& systemd, Journal& journal, UnitFacts facts,
                             Placeholder placeholder)
    : systemd_(systemd),
      journal_(journal),
      facts_(std::move(facts)),
      placeholder_(std::move(placeholder)) {}

SuspendedUnit::~SuspendedUnit() {
    (void)abandon();  // what fails stays in the journal
}

Result<std::unique_ptr<SuspendedUnit>> SuspendedUnit::open(Systemd& systemd, Journal& journal,
                                                           const UnitFacts& facts,
                                                           Placeholder placeholder, Steps& steps,
                                                           Deadline deadline) {
    CKPT_TRY(steps.enter("units.resume.check"));
    CKPT_ASSIGN(bool has_job, systemd.has_job(facts.id));
    if (has_job && facts.type != "oneshot")
        return fail(ErrorKind::kConflict, facts.id, "systemd has a job queued for it", "try again later");
    std::unique_ptr<SuspendedUnit> unit(
        new SuspendedUnit(systemd, journal, facts, std::move(placeholder)));
    CKPT_TRY(put_access_drop_in(systemd, journal, facts.id, "units.resume", steps, unit->drop_in_undo_));
    CKPT_TRY(steps.enter("units.resume.take-descriptors"));
    CKPT_TRY(unit->take_descriptors());
    CKPT_TRY(steps.enter("units.resume.enter-namespaces"));
    CKPT_ASSIGN(unit->door_, NamespaceDoor::open(unit->placeholder_, deadline));
    CKPT_ASSIGN(unit->numbers_undo_,
                undo_by_holding_numbers(journal, unit->placeholder_.pid()));
    CKPT_TRY(steps.enter("units.resume.free-numbers"));
    CKPT_TRY(unit->placeholder_.give_back_numbers(deadline));
    return unit;
}

Result<void> SuspendedUnit::take_descriptors() {
    CKPT_ASSIGN(cgroup_, systemd_.text(facts_.id, "Service", "ControlGroup"));
    CKPT_ASSIGN(const std::string root, cgroup2_mount_point());
    cgroup_dir_ = root + cgroup_;
    CKPT_ASSIGN(cgroup_fd_, open_at(AT_FDCWD, cgroup_dir_, O_RDONLY | O_DIRECTORY));
    int number = Placeholder::kFirstHeld;
    for (const UnitExternal& external : facts_.externals) {
        CKPT_ASSIGN(ScopedFd fd, take_descriptor(placeholder_.pidfd(), number++, "placeholder"));
        externals_.emplace_back(external.key, std::move(fd));
    }
    return {};
}

Result<uint64_t> SuspendedUnit::undo_by_ending_all() {
    return undo_by_ending_restored(journal_,
                                   {facts_.id, cgroup_dir_, placeholder_.pid(), 0, facts_.status_text});
}

Result<void> SuspendedUnit::hand_over(pid_t main_pid, const std::function<Result<void>()>& commit,
                                      Steps& steps, Deadline) {
    door_.reset();
    CKPT_TRY(steps.enter("units.resume.check-main"));
    CKPT_TRY(check_new_main(main_pid, cgroup_));
    CKPT_ASSIGN(hand_over_undo_,
                undo_by_finishing(journal_, {facts_.id, cgroup_dir_, placeholder_.pid(), main_pid,
                                             facts_.status_text}));
    CKPT_TRY(commit());
    // They run: what fails from here on is no reason to take it back. The way forward is the journal's.
    CKPT_TRY(steps.enter("units.resume.main-pid"));
    CKPT_TRY(journal_.undo(hand_over_undo_));
    hand_over_undo_ = 0;
    CKPT_ASSIGN(uint64_t now, systemd_.number(facts_.id, "Service", "MainPID"));
    if (now != static_cast<uint64_t>(main_pid))
        return fail(ErrorKind::kGone, facts_.id, "the restored main process died at once",
                    "it is suspended as before");
    CKPT_TRY(journal_.drop(std::exchange(numbers_undo_, 0)));
    if (drop_in_undo_ != 0) {
        (void)steps.enter("units.resume.remove-drop-in");
        if (journal_.undo(drop_in_undo_))
            drop_in_undo_ = 0;
    }
    return {};
}

Result<void> SuspendedUnit::abandon() {
    externals_.clear();
    door_.reset();
    for (uint64_t* undo : {&hand_over_undo_, &numbers_undo_, &drop_in_undo_}) {
        if (*undo != 0)
            CKPT_TRY(journal_.undo(*undo));
        *undo = 0;
    }
    return {};
}

}  // namespace checkpointd
