// SPDX-License-Identifier: LGPL-2.1-or-later
#include "compat/criu/guardian.h"

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>

#include "core/inject/loose_thread.h"
#include "core/kernel/pidfd.h"
#include "plugins/host/plugins.h"

namespace checkpointd::criu {
namespace {

// For the lock that the dead have held.
constexpr std::chrono::seconds kPatience{5};

std::string journal_of(const std::string& home) {
    return home + "/undo";
}

// Whatever ends the command, a signal to its process group or to its session too, has to be
// survived.
[[noreturn]] void guard(int pidfd, const std::string& home, const UndoTable& table,
                        const Log& log) {
    setsid();
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, nullptr);
    pollfd end{pidfd, POLLIN, 0};
    while (poll(&end, 1, -1) < 0 && errno == EINTR) {
    }
    auto undone = Journal::replay(journal_of(home), table, kPatience);
    if (!undone)
        log.error(undone.error());
    else if (*undone)
        log.info("this command has died, and what its plugins had done is undone");
    (void)rmdir(home.c_str());
    _exit(undone ? 0 : 1);
}

}  // namespace

Result<std::unique_ptr<Guardian>> Guardian::start(const std::string& plugin_directory,
                                                  const Log& log) {
    std::unique_ptr<Guardian> made(new Guardian);
    if (mkdtemp(made->home_.data()) == nullptr)
        return fail_errno(made->home_, "cannot be made, for the journal");
    add_plugin_undo_kinds(made->table_, plugin_directory);
    add_mask_undo_kind(made->table_);
    CKPT_ASSIGN(const ScopedFd own, pidfd_open(getpid()));
    made->pid_ = fork();
    if (made->pid_ < 0)
        return fail_errno("guardian", "cannot be forked");
    if (made->pid_ == 0)
        guard(own.get(), made->home_, made->table_, log);
    CKPT_ASSIGN(auto journal, Journal::create(journal_of(made->home_), made->table_));
    made->journal_.emplace(std::move(journal));
    return made;
}

Guardian::~Guardian() {
    (void)end();
}

void Guardian::dismiss() {
    const pid_t pid = std::exchange(pid_, 0);
    if (pid <= 0)
        return;
    ::kill(pid, SIGKILL);
    while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
    }
    (void)rmdir(home_.c_str());
}

Result<void> Guardian::end() {
    Result<void> undone;
    if (journal_)
        undone = journal_->rollback();
    if (journal_ && undone)
        undone = journal_->close();
    journal_.reset();
    dismiss();
    return undone;
}

}  // namespace checkpointd::criu
