// SPDX-License-Identifier: LGPL-2.1-or-later
#include "compat/criu/log.h"

#include <fcntl.h>
#include <unistd.h>

#include "core/base/io.h"

namespace checkpointd::criu {

Result<Log> Log::open(const Options& options) {
    if (options.log_file.empty())
        return Log(ScopedFd(fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3)), options.verbosity);
    const std::string& dir = options.work_dir.empty() ? options.images_dir : options.work_dir;
    CKPT_ASSIGN(ScopedFd at, open_at(AT_FDCWD, dir, O_DIRECTORY | O_RDONLY));
    CKPT_ASSIGN(ScopedFd fd, open_at(at.get(), options.log_file,
                                     O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600));
    return Log(std::move(fd), options.verbosity);
}

void Log::line(std::string_view prefix, std::string_view text) const {
    std::chrono::duration<double> since = std::chrono::steady_clock::now() - start_;
    std::string out = fmt::format("({:09.6f}) {}{}\n", since.count(), prefix, text);
    (void)write_all(fd_.get(), out.data(), out.size(), "log");  // a full disk must not end the job here
}

void Log::error(const Error& error) const {
    if (verbosity_ >= 1)
        line("Error ", error.text());
}

void Log::info(std::string_view text) const {
    if (verbosity_ >= 3)
        line("", text);
}

LoggedSteps::LoggedSteps(const Log& log, std::optional<std::chrono::seconds> timeout) : log_(log) {
    if (timeout)
        deadline_ = std::chrono::steady_clock::now() + *timeout;
}

Result<void> LoggedSteps::enter(std::string_view step) {
    log_.info(step);
    if (deadline_ && std::chrono::steady_clock::now() > *deadline_)
        return fail(ErrorKind::kTimeout, std::string(step), "the time given by --timeout has passed");
    return {};
}

// A hung step is ended by an alarm (hold() in dump.cc).
void LoggedSteps::giving_back(std::chrono::microseconds most) {
    const auto seconds = std::chrono::ceil<std::chrono::seconds>(most).count();
    if (const unsigned left = alarm(0); left > 0)
        alarm(std::max(left, static_cast<unsigned>(seconds)));
}

}  // namespace checkpointd::criu
