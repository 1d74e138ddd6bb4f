// SPDX-License-Identifier: LGPL-2.1-or-later
#include "service/process_helpers.h"

#include <csignal>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/pipe.h"

namespace checkpointd {
namespace {

constexpr size_t kMaxOutput = 32u << 20;  // a D-Bus message holds at most 128 MiB

// Attributes for a child that starts with our default signal set.
class SpawnSetup {
  public:
    explicit SpawnSetup(int out_fd) {
        posix_spawn_file_actions_init(&actions_);
        posix_spawnattr_init(&attributes_);
        posix_spawn_file_actions_adddup2(&actions_, out_fd, STDOUT_FILENO);
        sigset_t none;
        sigemptyset(&none);
        posix_spawnattr_setsigmask(&attributes_, &none);
        posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETSIGMASK);
    }
    SpawnSetup(const SpawnSetup&) = delete;
    SpawnSetup& operator=(const SpawnSetup&) = delete;
    ~SpawnSetup() {
        posix_spawn_file_actions_destroy(&actions_);
        posix_spawnattr_destroy(&attributes_);
    }
    const posix_spawn_file_actions_t* actions() const { return &actions_; }
    const posix_spawnattr_t* attributes() const { return &attributes_; }

  private:
    posix_spawn_file_actions_t actions_;
    posix_spawnattr_t attributes_;
};

}  // namespace

ProcessHelpers::~ProcessHelpers() {
    for (auto& [fd, child] : children_) {
        loop_.unwatch(fd);
        kill(child.pid, SIGKILL);
        waitpid(child.pid, nullptr, 0);
    }
}

void ProcessHelpers::recover(const std::string& job_dir, Done done) {
    run({"recover", job_dir}, std::move(done));
}

void ProcessHelpers::explain(const std::string& image_id, Done done) {
    run({"explain", store_dir_, image_id}, std::move(done));
}

void ProcessHelpers::remove_image(const std::string& image_id, Done done) {
    run({"remove-image", store_dir_, image_id}, std::move(done));
}

void ProcessHelpers::check_enable(const std::string& unit, Done done) {
    run({"check-enable", unit}, std::move(done));
}

void ProcessHelpers::run(std::vector<std::string> args, Done done) {
    auto child = spawn(std::move(args));
    if (!child) return done(tl::unexpected(std::move(child).error()));
    const int fd = child->pipe.get();
    child->done = std::move(done);
    children_[fd] = std::move(*child);
    loop_.watch(fd, [this, fd] { readable(fd); });
}

Result<ProcessHelpers::Child> ProcessHelpers::spawn(std::vector<std::string> args) {
    CKPT_ASSIGN(Pipe pipe, make_pipe(program_));
    Child child;
    child.pipe = std::move(pipe.read_end);
    fcntl(child.pipe.get(), F_SETFL, O_NONBLOCK);
    std::vector<char*> argv{program_.data()};
    for (std::string& arg : args) argv.push_back(arg.data());
    argv.push_back(nullptr);
    SpawnSetup setup(pipe.write_end.get());
    const int error = posix_spawn(&child.pid, program_.c_str(), setup.actions(), setup.attributes(),
                                  argv.data(), environ);
    if (error != 0) return fail_errno(program_, "cannot start", error);
    return child;
}

void ProcessHelpers::readable(int fd) {
    char buffer[65536];
    Child& child = children_.at(fd);
    const ssize_t size = read(fd, buffer, sizeof(buffer));
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (size <= 0) return ended(fd, {});
    child.output.append(buffer, static_cast<size_t>(size));
    if (child.output.size() > kMaxOutput) {
        kill(child.pid, SIGKILL);
        ended(fd, "answered with more than fits into a message");
    }
}

// End of file: the child has exited, or is about to.
void ProcessHelpers::ended(int fd, std::string failure) {
    loop_.unwatch(fd);
    Child child = std::move(children_.at(fd));
    children_.erase(fd);
    int status = 0;
    waitpid(child.pid, &status, 0);
    if (failure.empty() && WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return child.done(std::move(child.output));
    if (failure.empty() && WIFSIGNALED(status))
        failure = "was ended by signal " + std::to_string(WTERMSIG(status));
    child.done(tl::unexpected(failure.empty() ? parse_error(child.output)
                                              : Error{ErrorKind::kInternal, program_, failure, {}, 0, {}}));
}

}  // namespace checkpointd
