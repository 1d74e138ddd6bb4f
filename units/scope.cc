// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/scope.h"

#include <csignal>
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <systemd/sd-journal.h>
#include <thread>
#include <unistd.h>
#include <utility>

#include "core/base/io.h"
#include "core/kernel/cgroup.h"
#include "core/transaction/undo_kinds.h"
#include "units/definition.h"

namespace checkpointd {
namespace {

constexpr auto kPollInterval = std::chrono::milliseconds(2);
constexpr int kInfo = 6;  // LOG_INFO, as of systemd's own streams

Result<pid_t> oldest_process(const std::string& cgroup_dir) {
    CKPT_ASSIGN(auto pids, cgroup_processes(cgroup_dir));
    pid_t oldest = 0;
    uint64_t since = UINT64_MAX;
    for (pid_t pid : pids)
        if (auto started = process_start_time(pid); started && *started < since)
            oldest = pid, since = *started;
    return oldest;
}

Result<bool> is_gone(Systemd& systemd, const UnitFacts& facts) {
    CKPT_ASSIGN(std::string state, systemd.text(facts.id, "Unit", "ActiveState"));
    return state != "active" && state != "deactivating" && access(facts.cgroup_dir.c_str(), F_OK) != 0;
}

// Nothing but system calls: it is a copy of one thread of many.
[[noreturn]] void idle(pid_t worker) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != worker)
        _exit(0);
    prctl(PR_SET_NAME, "checkpointd");
    syscall(SYS_close_range, 0, ~0u, 0);
    for (;;)
        pause();
}

}  // namespace

Result<void> read_scope(Systemd& systemd, UnitFacts& facts) {
    facts.type = "scope";
    CKPT_ASSIGN(facts.cgroup, systemd.text(facts.id, "Scope", "ControlGroup"));
    CKPT_ASSIGN(facts.slice, systemd.text(facts.id, "Scope", "Slice"));
    CKPT_ASSIGN(facts.controller, systemd.text(facts.id, "Scope", "Controller"));
    if (facts.cgroup.empty())
        return {};
    CKPT_ASSIGN(const std::string root, cgroup2_mount_point());
    facts.cgroup_dir = root + facts.cgroup;
    CKPT_ASSIGN(facts.main_pid, oldest_process(facts.cgroup_dir));
    return {};
}

Result<void> check_scope(Systemd& systemd, const UnitFacts& facts, Blockers& blockers) {
    CKPT_ASSIGN(std::string substate, systemd.text(facts.id, "Unit", "SubState"));
    if (substate != "running" && substate != "abandoned")
        blockers.add(ErrorKind::kConflict, fmt::format("the scope is {}", substate));
    CKPT_ASSIGN(bool has_job, systemd.has_job(facts.id));
    if (has_job)
        blockers.add(ErrorKind::kConflict, "systemd has a job queued for it", "try again later");
    return {};
}

Result<void> end_scope(Systemd& systemd, const UnitFacts& facts, Steps& steps, Deadline deadline,
                       const std::function<Result<void>()>& reap) {
    CKPT_TRY(steps.enter("units.stop.stop-unit"));
    // Held tasks are not frozen and cannot fork, and the write is one system call.
    CKPT_ASSIGN(ScopedFd file, open_at(AT_FDCWD, facts.cgroup_dir + "/cgroup.kill", O_WRONLY));
    CKPT_TRY(write_all(file.get(), "1", 1, facts.cgroup_dir));
    CKPT_TRY(reap());
    for (;;) {
        CKPT_ASSIGN(bool gone, is_gone(systemd, facts));
        if (gone)
            return {};
        if (std::chrono::steady_clock::now() >= deadline)
            return fail(ErrorKind::kTimeout, facts.id, "systemd does not see that the scope is empty");
        std::this_thread::sleep_for(kPollInterval);
    }
}

Result<ScopeHolder> ScopeHolder::start() {
    ScopeHolder out;
    const pid_t worker = getpid();
    out.pid_ = fork();
    if (out.pid_ < 0)
        return fail_errno("placeholder", "cannot fork");
    if (out.pid_ == 0)
        idle(worker);
    return out;
}

ScopeHolder::ScopeHolder(ScopeHolder&& other) noexcept : pid_(std::exchange(other.pid_, 0)) {}

ScopeHolder& ScopeHolder::operator=(ScopeHolder&& other) noexcept {
    std::swap(pid_, other.pid_);
    return *this;
}

void ScopeHolder::end() {
    if (pid_ <= 0)
        return;
    kill(pid_, SIGKILL);
    waitpid(std::exchange(pid_, 0), nullptr, 0);
}

Result<ScopedFd> open_journal_stream(const std::string& identifier) {
    ScopedFd fd(sd_journal_stream_fd(identifier.c_str(), kInfo, 1));
    if (!fd)
        return fail_errno("journal", "cannot open a stream to it", -fd.get());
    return fd;
}

}  // namespace checkpointd
