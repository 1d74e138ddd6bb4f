// SPDX-License-Identifier: LGPL-2.1-or-later
#include <csignal>
#include <cstdio>
#include <sys/signalfd.h>
#include <unistd.h>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "cli/verbs.h"
#include "core/base/scoped_fd.h"

namespace checkpointd::cli {
namespace {

// One line on standard error that is drawn over itself; nothing at all when that is no terminal.
class ProgressBar {
  public:
    ProgressBar() : on_(isatty(STDERR_FILENO) != 0) {}
    ProgressBar(const ProgressBar&) = delete;
    ProgressBar& operator=(const ProgressBar&) = delete;
    ~ProgressBar() { clear(); }

    void draw(const JobView& view) {
        if (!on_) return;
        constexpr int kWidth = 30;
        const int done = static_cast<int>(view.progress * kWidth);
        std::string line = fmt::format("\r\033[K[{:#<{}}{:.<{}}] {:3.0f}%  {}", "", done, "",
                                       kWidth - done, view.progress * 100, view.phase);
        if (view.bytes_total > 0)
            line += fmt::format("  {} of {}", human_bytes(view.bytes), human_bytes(view.bytes_total));
        if (view.state == "cancelling" || view.state == "recovering") line += "  " + view.state;
        fmt::print(stderr, "{}", line);
        std::fflush(stderr);
        drawn_ = true;
    }
    void clear() {
        if (std::exchange(drawn_, false)) fmt::print(stderr, "\r\033[K");
    }

  private:
    bool on_;
    bool drawn_ = false;
};

// Ctrl-C: the first cancels the job, the second leaves it to itself.
class Interrupts {
  public:
    Interrupts() {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGINT);
        sigprocmask(SIG_BLOCK, &set, &old_);
        fd_.reset(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
    }
    Interrupts(const Interrupts&) = delete;
    Interrupts& operator=(const Interrupts&) = delete;
    ~Interrupts() { sigprocmask(SIG_SETMASK, &old_, nullptr); }
    int fd() const { return fd_.get(); }
    void take() const {
        signalfd_siginfo info;
        (void)!read(fd_.get(), &info, sizeof(info));
    }
    // From now on Ctrl-C ends us as it does any program.
    void give_up() const { sigprocmask(SIG_SETMASK, &old_, nullptr); }

  private:
    ScopedFd fd_;
    sigset_t old_{};
};

void say_done(const nlohmann::json& job) {
    const auto& result = job.at("Result");
    const uint64_t total = job.at("FinishedUsec").get<uint64_t>() - job.at("StartedUsec").get<uint64_t>();
    if (job.at("Type") == "checkpoint")
        fmt::print("{} is on disk: image {}, {}, frozen {}, {} in all\n",
                   job.at("Unit").get<std::string>(), result.at("Image").get<std::string>(),
                   human_bytes(result.at("Bytes")), human_usec(result.at("FrozenUsec")),
                   human_usec(total));
    else
        fmt::print("{} runs again: main PID {}, from image {}, {} in all\n",
                   job.at("Unit").get<std::string>(), result.at("MainPid").get<uint32_t>(),
                   result.at("Image").get<std::string>(), human_usec(total));
    if (const std::string why = result.value("PidNamespace", ""); !why.empty())
        fmt::print("It is in a PID namespace of its own, where its program has its old PIDs: {}\n", why);
}

// What programs get: the result, and which job it was of.
nlohmann::json outcome(const nlohmann::json& job) {
    nlohmann::json all = job.at("Result");
    for (const char* key : {"Id", "Type", "Unit", "State"}) all[key] = job.at(key);
    if (job.at("State") == "done") return all;
    for (const char* key : {"Phase", "ErrorName", "ErrorMessage"}) all[key] = job.at(key);
    return all;
}

ErrorKind kind_of(const std::string& name, const std::string& state) {
    for (ErrorKind kind : {ErrorKind::kUnsupported, ErrorKind::kBadInput, ErrorKind::kBadImage,
                           ErrorKind::kNotFound, ErrorKind::kConflict, ErrorKind::kDenied,
                           ErrorKind::kTimeout, ErrorKind::kCancelled})
        if (name == "org.checkpointd1.Error." + std::string(to_string(kind))) return kind;
    return state == "cancelled" ? ErrorKind::kCancelled : ErrorKind::kSystem;
}

}  // namespace

Result<void> follow_job(Client& client, const std::string& job_path, const Global& global) {
    ProgressBar bar;
    Interrupts interrupts;
    auto interrupted = [&] {
        interrupts.take();
        bar.clear();
        auto cancelled = client.cancel(job_path);
        fmt::print(stderr, "{}\n", cancelled ? "Cancelling; Ctrl-C again leaves the job to itself."
                                             : cancelled.error().text());
        interrupts.give_up();
    };
    CKPT_ASSIGN(auto job, client.wait(
                              job_path, [&](const JobView& view) { bar.draw(view); },
                              interrupts.fd(), interrupted));
    bar.clear();
    if (global.json) print_json(outcome(job));
    if (job.at("State") == "done") {
        if (!global.json) say_done(job);
        return {};
    }
    return fail(kind_of(job.at("ErrorName"), job.at("State")), {}, job.at("ErrorMessage"));
}

Result<void> run_job(Client& client, Result<std::string> job, bool no_wait, const Global& global) {
    if (!job) return tl::unexpected(std::move(job).error());
    if (!no_wait) return follow_job(client, *job, global);
    if (global.json) print_fields({{"Job", *job}});
    else fmt::print("{}\n", *job);
    return {};
}

}  // namespace checkpointd::cli
