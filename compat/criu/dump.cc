// SPDX-License-Identifier: LGPL-2.1-or-later
#include <csignal>
#include <fcntl.h>

#include "compat/criu/actions.h"
#include "core/base/io.h"
#include "core/checkpoint/checkpoint.h"

namespace checkpointd::criu {
namespace {

// A SIGSTOP queued before the detach stops each task before it runs a single instruction.
Result<void> leave_stopped(HeldForest& held) {
    for (pid_t pid : held.pids())
        if (::kill(pid, SIGSTOP) != 0 && errno != ESRCH)
            return fail_errno(fmt::format("pid {}", pid), "cannot stop");
    return held.resume();
}

}  // namespace

Result<void> dump(const Options& options, const Log& log) {
    CKPT_ASSIGN(ScopedFd dir, open_at(AT_FDCWD, options.images_dir, O_DIRECTORY | O_RDONLY));
    CheckpointRequest request;
    request.target = TreeTarget{options.tree};
    request.image_dir_fd = dir.get();
    request.externals = options.externals;
    request.goes_on = options.leave_running && !options.leave_stopped;
    LoggedSteps steps(log, options.timeout);
    CheckpointStats stats;
    CKPT_ASSIGN(HeldForest held, checkpoint(request, steps, stats));
    log.info(fmt::format("{} tasks, {} threads, {} pages, frozen {} us, {} copies hold the memory",
                         stats.tasks, stats.threads, stats.pages_written,
                         stats.frozen.count() / 1000, stats.copies));
    if (options.leave_stopped)
        return leave_stopped(held);
    if (!options.leave_running)
        return held.kill();
    CKPT_TRY(held.resume());
    return held.finish(steps, stats);
}

}  // namespace checkpointd::criu
