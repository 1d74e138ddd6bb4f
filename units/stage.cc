// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/stage.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/base/io.h"
#include "core/kernel/cgroup.h"
#include "core/transaction/undo_kinds.h"
#include "units/definition.h"
#include "units/drop_in_file.h"
#include "units/gate.h"
#include "units/undo.h"
#include "units/unit_process.h"
#include "units/watchdog_feeder.h"

namespace checkpointd {
namespace {

constexpr const char* kHelper = "stage helper";
constexpr int kFirstListenFd = 3;  // SD_LISTEN_FDS_START

// exec is systemd's last step, so with the helper's program the sandbox is complete; with its signals
// blocked the helper has come to its wait and none of ours can be lost.
bool is_ready_helper(pid_t pid, const struct stat& helper) {
    struct stat program;
    if (stat(fmt::format("/proc/{}/exe", pid).c_str(), &program) != 0 ||
        program.st_dev != helper.st_dev || program.st_ino != helper.st_ino)
        return false;
    std::string blocked_text = status_field(pid, "SigBlk");
    uint64_t blocked = 0;
    std::from_chars(blocked_text.data(), blocked_text.data() + blocked_text.size(), blocked, 16);
    return (blocked & (1u << (SIGWINCH - 1))) != 0;  // its mark, see stage/helper.c
}

// What starts in a frozen slice waits in it (252), or PID 1 refuses the job (256 and newer).
Result<void> check_slice_runs(Systemd& systemd, const UnitFacts& facts) {
    CKPT_ASSIGN(std::string slice, systemd.text(facts.id, "Service", "Slice"));
    CKPT_ASSIGN(std::string state, systemd.text(slice, "Unit", "FreezerState"));
    if (state == "running")
        return {};
    return fail(ErrorKind::kConflict, facts.id, fmt::format("its slice {} is {}", slice, state),
                fmt::format("systemctl thaw {}", slice));
}

// Is it the unit of the image, and can something start in it?
Result<void> check_definition(Systemd& systemd, const UnitFacts& facts) {
    CKPT_ASSIGN(std::string load_state, systemd.text(facts.id, "Unit", "LoadState"));
    if (load_state != "loaded")
        return fail(ErrorKind::kNotFound, facts.id, fmt::format("the unit is {}", load_state),
                    "install the unit as it was at the checkpoint");
    CKPT_ASSIGN(std::string type, systemd.text(facts.id, "Service", "Type"));
    if (type != facts.type)
        return fail(ErrorKind::kConflict, facts.id,
                    fmt::format("its Type= was {} at the checkpoint and is {} now", facts.type, type));
    return check_slice_runs(systemd, facts);
}

// An image of a suspended unit, which was stopped since.
Result<void> check_was_not_in_place(const UnitFacts& facts) {
    if (facts.only_in_place.empty())
        return {};
    return fail(ErrorKind::kUnsupported, facts.id,
                fmt::format("this image was to go on in the suspended unit, which was stopped since: {}",
                            facts.only_in_place),
                "start the unit");
}

// A transient unit is made by our start. One that is there is not ours.
Result<void> check_absent(const UnitFacts& facts) {
    return fail(ErrorKind::kConflict, facts.id, "there is a unit of this name by now",
                "remove its unit file, or forget it by systemctl reset-failed");
}

Result<void> check_inactive(Systemd& systemd, const UnitFacts& facts) {
    CKPT_ASSIGN(std::string load_state, systemd.text(facts.id, "Unit", "LoadState"));
    if (facts.transient && load_state == "not-found")
        return {};
    CKPT_ASSIGN(std::string state, systemd.text(facts.id, "Unit", "ActiveState"));
    CKPT_ASSIGN(bool has_job, systemd.has_job(facts.id));
    if ((state != "inactive" && state != "failed") || has_job)
        return fail(ErrorKind::kConflict, facts.id,
                    fmt::format("the unit is {}{}", state, has_job ? " and has a job queued" : ""),
                    "stop it first");
    CKPT_TRY(facts.transient ? check_absent(facts) : check_definition(systemd, facts));
    return state == "failed" ? systemd.reset_failed(facts.id) : Result<void>();
}

// For what a staging failed, as systemd tells it.
Error staging_failure(Systemd& systemd, const UnitFacts& facts, const std::string& what) {
    std::string result = systemd.text(facts.id, "Service", "Result").value_or("?");
    uint64_t status = systemd.number(facts.id, "Service", "ExecMainStatus").value_or(0);
    bool not_executed = status == 203 || status == 226;  // EXIT_EXEC, EXIT_NAMESPACE
    return Error{ErrorKind::kSystem, facts.id,
                 fmt::format("systemd could not start the stage helper in it: {} (result {}, status {})",
                             what, result, status),
                 not_executed ? "does the unit's sandbox hide /usr/libexec?"
                              : "see systemctl status and journalctl -u of the unit",
                 0,
                 {}};
}

}  // namespace

StagedUnit::StagedUnit(Systemd& systemd, Journal& journal, UnitFacts facts)
    : systemd_(&systemd), journal_(&journal), facts_(std::move(facts)) {}

StagedUnit::StagedUnit(StagedUnit&& other) noexcept
    : systemd_(other.systemd_),
      journal_(other.journal_),
      facts_(std::move(other.facts_)),
      drop_in_undo_(std::exchange(other.drop_in_undo_, 0)),
      unstage_undo_(std::exchange(other.unstage_undo_, 0)),
      define_undo_(std::exchange(other.define_undo_, 0)),
      cold_start_undo_(std::exchange(other.cold_start_undo_, 0)),
      placeholder_(std::move(other.placeholder_)),
      helper_pid_(other.helper_pid_),
      helper_pidfd_(std::move(other.helper_pidfd_)),
      cgroup_fd_(std::move(other.cgroup_fd_)),
      cgroup_(std::move(other.cgroup_)),
      cgroup_dir_(std::move(other.cgroup_dir_)),
      start_job_(std::move(other.start_job_)),
      externals_(std::move(other.externals_)) {}

StagedUnit::~StagedUnit() {
    (void)abandon();  // what fails stays in the journal
}

Result<StagedUnit> StagedUnit::start(Systemd& systemd, Journal& journal, const UnitFacts& facts,
                                     const StageOptions& options, Steps& steps, Deadline deadline) {
    CKPT_TRY(steps.enter("units.stage.check"));
    CKPT_TRY(check_was_not_in_place(facts));
    CKPT_TRY(check_inactive(systemd, facts));
    StagedUnit staged(systemd, journal, facts);
    CKPT_TRY(staged.write_drop_in(options, steps));
    if (facts.is_scope())
        CKPT_TRY(staged.start_scope(steps, deadline));
    else
        CKPT_TRY(staged.start_unit(options, steps, deadline));
    CKPT_TRY(staged.take_stage(steps));
    return staged;
}

Result<StagedUnit> StagedUnit::adopt(Systemd& systemd, Journal& journal, const UnitFacts& facts,
                                     StageOptions options, uint64_t cold_start_undo, Steps& steps,
                                     Deadline deadline) {
    StagedUnit staged(systemd, journal, facts);
    staged.cold_start_undo_ = cold_start_undo;
    options.at_gate = true;
    auto laid_out = staged.lay_out(std::move(options), steps, deadline);
    if (laid_out)
        return staged;
    (void)note_cold_start(facts.id, laid_out.error().line());
    return tl::unexpected(std::move(laid_out).error());
}

Result<void> StagedUnit::lay_out(StageOptions options, Steps& steps, Deadline deadline) {
    CKPT_TRY(steps.enter("units.stage.check"));
    CKPT_TRY(check_was_not_in_place(facts_));
    CKPT_TRY(facts_.transient ? check_absent(facts_) : check_definition(*systemd_, facts_));
    CKPT_ASSIGN(ScopedFd gate, find_gate(*systemd_, facts_.id));
    if (!gate)
        return fail(ErrorKind::kConflict, facts_.id, "its start does not wait for us");
    CKPT_TRY(write_drop_in(options, steps));
    CKPT_TRY(open_gate(gate, steps));
    CKPT_TRY(wait_helper(options, steps, deadline));
    return take_stage(steps);
}

// PID 1 has read our drop-in by now, so a gate that lives lets the unit pass to the stage. One that has gone
// before may have let it pass to a cold start.
Result<void> StagedUnit::open_gate(const ScopedFd& gate, Steps& steps) {
    CKPT_TRY(steps.enter("units.stage.open-gate"));
    if (syscall(SYS_pidfd_send_signal, gate.get(), kGateStaged, nullptr, 0) == 0)
        return {};
    if (errno != ESRCH)
        return fail_errno(facts_.id, "cannot open its gate");
    return fail(ErrorKind::kConflict, facts_.id, "its start has not waited for us");
}

Result<void> StagedUnit::take_stage(Steps& steps) {
    CKPT_TRY(steps.enter("units.stage.take-descriptors"));
    CKPT_TRY(open_cgroup());
    return facts_.is_scope() ? open_streams() : take_descriptors();
}

Result<void> StagedUnit::write_drop_in(const StageOptions& options, Steps& steps) {
    StageOptions own = options;
    std::vector<ExecCommand> commands = facts_.exec_start;
    if (facts_.transient) {
        own.needs_exec_path = facts_.definition.find("\nNoExecPaths=") != std::string::npos;
        own.needs_calls = facts_.definition.find("\nSystemCallFilter=") != std::string::npos;
    } else {
        CKPT_ASSIGN(commands, systemd_->commands(facts_.id, "ExecStart"));
        CKPT_ASSIGN(auto no_exec, systemd_->list(facts_.id, "Service", "NoExecPaths"));
        own.needs_exec_path = !no_exec.empty();
        CKPT_ASSIGN(own.needs_calls, systemd_->has_call_filter(facts_.id));
    }
    return put_drop_in(*systemd_, *journal_, facts_.id, restore_drop_in(facts_, commands, own),
                       "units.stage", steps, drop_in_undo_);
}

// How the start job ended, if it did. Of a unit that was adopted the job is somebody else's.
Result<std::optional<std::string>> StagedUnit::end_of_start() {
    if (!start_job_.empty())
        return systemd_->job_result(start_job_);
    CKPT_ASSIGN(std::string state, systemd_->text(facts_.id, "Unit", "ActiveState"));
    if (state == "activating")
        return std::optional<std::string>();
    return std::optional<std::string>(state);
}

Result<pid_t> StagedUnit::find_helper(const StageOptions& options) {
    struct stat helper;
    if (stat(options.helper.c_str(), &helper) != 0)
        return fail_errno(options.helper, "the stage helper is not installed");
    // Of a forking unit the start command is the control process, not the main one.
    const char* property = facts_.type == "forking" ? "ControlPID" : "MainPID";
    CKPT_ASSIGN(uint64_t pid, systemd_->number(facts_.id, "Service", property));
    if (pid != 0 && is_ready_helper(static_cast<pid_t>(pid), helper))
        return static_cast<pid_t>(pid);
    CKPT_ASSIGN(auto ended, end_of_start());
    if (ended)
        return tl::unexpected(staging_failure(*systemd_, facts_, fmt::format("its job is {}", *ended)));
    return 0;
}

Result<void> StagedUnit::start_unit(const StageOptions& options, Steps& steps, Deadline deadline) {
    CKPT_ASSIGN(unstage_undo_, undo_by_unstaging(*journal_, facts_.id));
    CKPT_TRY(steps.enter("units.stage.start-unit"));
    CKPT_ASSIGN(start_job_, facts_.transient ? start_transient(*systemd_, facts_, 0)
                                             : systemd_->start_unit(facts_.id));
    return wait_helper(options, steps, deadline);
}

Result<void> StagedUnit::wait_helper(const StageOptions& options, Steps& steps, Deadline deadline) {
    CKPT_TRY(steps.enter("units.stage.wait-helper"));
    CKPT_TRY(poll_until(deadline, facts_.id, "the stage helper did not come up in time",
                        [&]() -> Result<bool> {
                            CKPT_ASSIGN(helper_pid_, find_helper(options));
                            return helper_pid_ != 0;
                        }));
    CKPT_ASSIGN(helper_pidfd_, open_pidfd(helper_pid_));
    return {};
}

// Limits hold for the restored processes from their first instruction on, because they are born in it.
Result<void> StagedUnit::start_scope(Steps& steps, Deadline deadline) {
    CKPT_ASSIGN(unstage_undo_, undo_by_unstaging(*journal_, facts_.id));
    CKPT_TRY(steps.enter("units.stage.start-unit"));
    CKPT_ASSIGN(placeholder_, ScopeHolder::start());
    helper_pid_ = placeholder_.pid();
    CKPT_ASSIGN(helper_pidfd_, open_pidfd(helper_pid_));
    CKPT_ASSIGN(start_job_, start_transient(*systemd_, facts_, helper_pid_));
    CKPT_ASSIGN(std::string result, systemd_->wait_job(start_job_, deadline));
    if (result != "done")
        return fail(ErrorKind::kSystem, facts_.id,
                    fmt::format("systemd could not start the scope: its job is {}", result));
    return {};
}

Result<void> StagedUnit::open_streams() {
    for (const UnitExternal& external : facts_.externals) {
        if (external.address.empty() && external.key.starts_with("socket:")) {
            CKPT_ASSIGN(ScopedFd stream, open_journal_stream(facts_.id));
            externals_.emplace_back(external.key, std::move(stream));
            continue;
        }
        return fail(ErrorKind::kUnsupported, facts_.id,
                    fmt::format("nobody opens {} again for a scope", external.key));
    }
    return {};
}

Result<void> StagedUnit::open_cgroup() {
    CKPT_ASSIGN(cgroup_, systemd_->text(facts_.id, facts_.is_scope() ? "Scope" : "Service", "ControlGroup"));
    CKPT_ASSIGN(const std::string root, cgroup2_mount_point());
    cgroup_dir_ = root + cgroup_;
    CKPT_ASSIGN(cgroup_fd_, open_at(AT_FDCWD, cgroup_dir_, O_RDONLY | O_DIRECTORY));
    return make_subgroups(cgroup_dir_, facts_.subgroups);
}

// A listening socket keeps its name and address over a reboot, not its number nor its inode.
Result<ScopedFd> StagedUnit::take_listener(const UnitExternal& wanted,
                                           const std::vector<std::string>& names) {
    for (size_t i = 0; i < names.size(); ++i) {
        CKPT_ASSIGN(ScopedFd fd, take_descriptor(helper_pidfd_.get(),
                                                 kFirstListenFd + static_cast<int>(i), kHelper));
        CKPT_ASSIGN(std::string address, describe_socket(fd.get()));
        if (address == wanted.address && (wanted.name.empty() || wanted.name == names[i]))
            return fd;
    }
    return fail(ErrorKind::kConflict, facts_.id,
                fmt::format("systemd passes no socket '{}' with the address that it had", wanted.name),
                "the socket unit must listen where it did at the checkpoint");
}

Result<void> StagedUnit::take_descriptors() {
    CKPT_ASSIGN(std::string environment,
                read_file(AT_FDCWD, fmt::format("/proc/{}/environ", helper_pid_)));
    std::vector<std::string> names = listen_names(environment);
    for (const UnitExternal& external : facts_.externals) {
        ScopedFd fd;
        if (external.kind == ExternalKind::kListen) {
            CKPT_ASSIGN(fd, take_listener(external, names));
        } else {
            int number = external.kind == ExternalKind::kStdio ? static_cast<int>(external.index)
                                                               : STDOUT_FILENO;
            CKPT_ASSIGN(fd, take_descriptor(helper_pidfd_.get(), number, kHelper));
        }
        externals_.emplace_back(external.key, std::move(fd));
    }
    return {};
}

Result<void> StagedUnit::announce(pid_t main_pid, Steps& steps, Deadline deadline) {
    if (facts_.is_scope())
        return {};  // it has no main process
    CKPT_TRY(steps.enter("units.hand-over.main-pid"));
    CKPT_TRY(check_new_main(main_pid, cgroup_));
    const bool says_ready = facts_.type != "forking" && facts_.type != "oneshot";
    // In one message: should what is restored die as the main process of a unit that is starting yet, the start job
    // would fail, and so would all that wait for it. PID 1 sets the main process before it hears READY=1
    // (service_notify_message()), and hears that even if it refuses the process: hence the look at it.
    CKPT_TRY(notify_as(helper_pid_, fmt::format("MAINPID={}\nSTATUS=Restored from checkpoint{}", main_pid,
                                                says_ready ? "\nREADY=1" : "")));
    // PID 1 finds the unit of a message by its sender. If it reaps the helper first, nobody has said it.
    return poll_until(deadline, facts_.id, "systemd did not accept the restored main process",
                      [&]() -> Result<bool> {
                          CKPT_ASSIGN(uint64_t now, systemd_->number(facts_.id, "Service", "MainPID"));
                          CKPT_ASSIGN(std::string state, systemd_->text(facts_.id, "Unit", "ActiveState"));
                          return now == static_cast<uint64_t>(main_pid) && (!says_ready || state != "activating");
                      });
}

Result<void> StagedUnit::dismiss_helper(Steps& steps, Deadline deadline) {
    CKPT_TRY(steps.enter("units.hand-over.dismiss-helper"));
    if (facts_.is_scope()) {
        placeholder_.end();
        return {};
    }
    if (syscall(SYS_pidfd_send_signal, helper_pidfd_.get(), SIGUSR1, nullptr, 0) != 0)
        return fail_errno("stage helper", "cannot tell it to leave");
    return poll_until(deadline, facts_.id, "the stage helper does not leave", [&]() -> Result<bool> {
        pollfd ended = {helper_pidfd_.get(), POLLIN, 0};
        return poll(&ended, 1, 0) == 1;
    });
}

Result<void> StagedUnit::wait_running(pid_t main_pid, Steps& steps, Deadline deadline) {
    CKPT_TRY(steps.enter("units.hand-over.wait-active"));
    // A oneshot is "activating" for as long as its program runs.
    std::string_view wanted = facts_.type == "oneshot" ? "activating" : "active";
    std::string state;
    auto reached = poll_until(
        deadline, facts_.id, "systemd does not call it running after the restore", [&]() -> Result<bool> {
            CKPT_ASSIGN(state, systemd_->text(facts_.id, "Unit", "ActiveState"));
            if (state == "failed" || state == "inactive" || state == "deactivating")
                return fail(ErrorKind::kGone, facts_.id, fmt::format("it is {} after the restore", state));
            return state == wanted;
        });
    CKPT_TRY(reached);
    if (facts_.is_scope())
        return {};
    CKPT_ASSIGN(uint64_t now, systemd_->number(facts_.id, "Service", "MainPID"));
    if (now != static_cast<uint64_t>(main_pid))
        return fail(ErrorKind::kSystem, facts_.id,
                    fmt::format("its main process is {} now, not {}", now, main_pid));
    return {};
}

// At every instant one of two records is there: the unit leaves the stage, whatever lives in it; or, once
// the tasks may run, it does so if they died with us. Then PID 1 may not have seen their death yet, and the
// drop-in must not go before it has. The record of a unit at its gate serves for both.
Result<void> StagedUnit::commit_to(pid_t main_pid, const std::function<Result<void>()>& commit) {
    if (cold_start_undo_ != 0)
        return commit();
    if (facts_.transient) {
        CKPT_ASSIGN(define_undo_, undo_by_defining(*journal_, facts_.id, facts_.definition));
    }
    CKPT_ASSIGN(const uint64_t unless_alive,
                undo_by_unstaging_unless_alive(*journal_, facts_.id, main_pid));
    CKPT_TRY(journal_->drop(std::exchange(unstage_undo_, unless_alive)));
    return commit();
}

Result<void> StagedUnit::hand_over(pid_t main_pid, const std::function<Result<void>()>& commit,
                                   Steps& steps, Deadline deadline) {
    CKPT_TRY(announce(main_pid, steps, deadline));
    auto feeder = WatchdogFeeder::make(*systemd_, facts_.id);  // the tasks stand until the commit
    CKPT_TRY(dismiss_helper(steps, deadline));
    CKPT_TRY(wait_running(main_pid, steps, deadline));
    if (!feeder)  // systemd called it starting until now
        feeder = WatchdogFeeder::make(*systemd_, facts_.id);
    CKPT_TRY(steps.enter("units.hand-over.commit"));
    CKPT_TRY(configure_subgroups(cgroup_dir_, facts_.subgroups));
    CKPT_TRY(commit_to(main_pid, commit));
    feeder.reset();
    // The restore has succeeded: what fails from here on is no reason to take it back. A drop-in that
    // could not be removed stays in the journal.
    (void)steps.enter("units.hand-over.remove-drop-in");
    const uint64_t unless_alive = std::exchange(unstage_undo_, 0);
    if (define_undo_ != 0 && journal_->undo(define_undo_))
        define_undo_ = 0;
    if (journal_->undo(drop_in_undo_))
        drop_in_undo_ = 0;
    (void)journal_->drop(unless_alive);
    (void)journal_->drop(std::exchange(cold_start_undo_, 0));
    return {};
}

Result<uint64_t> StagedUnit::undo_by_ending_all() {
    return undo_by_emptying(*journal_, cgroup_dir_);
}

Result<void> StagedUnit::abandon() {
    externals_.clear();
    if (unstage_undo_ != 0) {
        CKPT_TRY(journal_->undo(unstage_undo_));
        unstage_undo_ = 0;
    }
    if (define_undo_ != 0) {
        CKPT_TRY(journal_->drop(define_undo_));
        define_undo_ = 0;
    }
    if (drop_in_undo_ != 0) {
        CKPT_TRY(journal_->undo(drop_in_undo_));
        drop_in_undo_ = 0;
    }
    if (cold_start_undo_ != 0) {
        CKPT_TRY(journal_->undo(cold_start_undo_));
        cold_start_undo_ = 0;
    }
    return {};
}

}  // namespace checkpointd
