// SPDX-License-Identifier: LGPL-2.1-or-later
#include <fcntl.h>
#include <unistd.h>

#include "compat/criu/actions.h"
#include "compat/criu/devices.h"
#include "core/base/io.h"
#include "core/checkpoint/checkpoint.h"

namespace checkpointd::criu {
namespace {

// A call of a driver that hangs: the guardian does what is left to do, and the tasks go on without
// us.
constexpr std::chrono::seconds kLongerThanAnyStep{5};

Result<HeldForest> hold(const CheckpointRequest& request, const Options& options,
                        LoggedSteps& steps, CheckpointStats& stats) {
    if (request.plugins != nullptr && options.timeout)
        alarm(static_cast<unsigned>((*options.timeout + kLongerThanAnyStep).count()));
    auto held = checkpoint(request, steps, stats);
    alarm(0);
    return held;
}

Result<void> dump(const Options& options, const Log& log, int image_dir_fd, Plugins* plugins) {
    LoggedSteps steps(log, options.timeout);
    CheckpointRequest request;
    request.target = TreeTarget{options.tree};
    request.image_dir_fd = image_dir_fd;
    request.externals = options.externals;
    request.deadline = steps.given_deadline();
    request.plugins = plugins;
    request.goes_on = options.leave_running && !options.leave_stopped;
    CheckpointStats stats;
    CKPT_ASSIGN(HeldForest held, hold(request, options, steps, stats));
    log.info(fmt::format("{} tasks, {} threads, {} pages, frozen {} us, {} copies hold the memory",
                         stats.tasks, stats.threads, stats.pages_written,
                         stats.frozen.count() / 1000, stats.copies));
    if (options.leave_stopped)
        return held.resume_stopped();
    if (!options.leave_running)
        return held.kill();
    CKPT_TRY(held.resume());
    return held.finish(steps, stats);
}

}  // namespace

Result<void> dump(const Options& options, const Log& log) {
    CKPT_ASSIGN(ScopedFd dir, open_at(AT_FDCWD, options.images_dir, O_DIRECTORY | O_RDONLY));
    CKPT_ASSIGN(Devices devices, Devices::of_dump(options, log, dir.get()));
    return devices.end(dump(options, log, dir.get(), devices.plugins()));
}

}  // namespace checkpointd::criu
