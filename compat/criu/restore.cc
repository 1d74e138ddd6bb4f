// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/restore/restore.h"

#include <cerrno>
#include <fcntl.h>
#include <sys/wait.h>

#include "compat/criu/actions.h"
#include "compat/criu/devices.h"
#include "core/base/io.h"

namespace checkpointd::criu {
namespace {

Result<void> write_pid_file(const std::string& path, pid_t pid) {
    CKPT_ASSIGN(ScopedFd fd, open_at(AT_FDCWD, path, O_WRONLY | O_CREAT | O_EXCL, 0600));
    std::string text = std::to_string(pid);
    return write_all(fd.get(), text.data(), text.size(), path);
}

// Without --restore-detached we stay as the parent until the restored tree is gone.
void wait_for_children() {
    while (wait(nullptr) >= 0 || errno == EINTR) {
    }
}

Result<void> restore(const Options& options, const Log& log, int image_dir_fd, Plugins* plugins) {
    LoggedSteps steps(log, std::nullopt);
    RestoreRequest request(steps);
    request.image_dir_fd = image_dir_fd;
    request.externals = options.inherited;
    request.shell_job = options.shell_job;
    request.plugins = plugins;
    request.parent = options.restore_sibling ? RestoreRequest::Parent::kSibling
                                             : RestoreRequest::Parent::kChild;
    RestoreStats stats;
    CKPT_ASSIGN(BuiltForest built, build_forest(request, stats));
    log.info(fmt::format("{} tasks, {} threads, read in {} us, built in {} us", stats.tasks,
                         stats.threads, stats.read_us, stats.build_us));
    if (!options.pid_file.empty())
        CKPT_TRY(write_pid_file(options.pid_file, built.main_pid()));
    return built.commit();
}

}  // namespace

Result<void> restore(const Options& options, const Log& log) {
    CKPT_ASSIGN(ScopedFd dir, open_at(AT_FDCWD, options.images_dir, O_DIRECTORY | O_RDONLY));
    CKPT_ASSIGN(Devices devices, Devices::of_restore(options, log, dir.get()));
    CKPT_TRY(devices.end(restore(options, log, dir.get(), devices.plugins())));
    if (!options.restore_detached && !options.restore_sibling)
        wait_for_children();
    return {};
}

}  // namespace checkpointd::criu
