// SPDX-License-Identifier: LGPL-2.1-or-later
#include "service/worker/at_shutdown.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>
#include <set>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

#include <fmt/format.h>

#include "config/policy/policy.h"
#include "core/base/directory.h"
#include "service/event_loop.h"
#include "service/options.h"
#include "service/protocol.h"
#include "units/shutdown_order.h"
#include "units/systemd.h"

namespace checkpointd {
namespace {

struct Candidate {
    std::string unit;
    std::set<std::string> before;  // units that start after it
};

Result<std::vector<Candidate>> find_candidates(Systemd& systemd, const Policy& policy) {
    CKPT_ASSIGN(auto running, systemd.running_services());
    std::vector<Candidate> found;
    for (const std::string& unit : running) {
        if (!policy.for_unit(unit).checkpoint_at_shutdown) continue;
        CKPT_ASSIGN(auto before, systemd.list(unit, "Unit", "Before"));
        Candidate candidate{unit, {before.begin(), before.end()}};
        // systemd does not wait with one that is not ordered: it is being stopped already.
        if (candidate.before.contains(kShutdownUnit)) found.push_back(std::move(candidate));
    }
    return found;
}

class Shutdown {
  public:
    Shutdown(const ShutdownConfig& config, const Policy& policy) : config_(config), policy_(policy) {}
    Result<std::string> run(std::vector<Candidate> waiting);

  private:
    std::string job_dir(const std::string& unit) const { return config_.jobs_dir + "/" + unit; }
    Result<void> write_request(const std::string& unit) const;
    Result<pid_t> spawn(const char* verb, const std::string& unit) const;
    void start_free(std::vector<Candidate>& waiting);
    void start(const std::string& unit);
    void await_one();
    std::string outcome(const std::string& unit) const;

    const ShutdownConfig& config_;
    const Policy& policy_;
    std::map<pid_t, std::string> running_;
    std::string report_;
};

Result<void> Shutdown::write_request(const std::string& unit) const {
    JobRequest request;
    request.unit = unit;
    request.at_shutdown = true;
    request.created_usec = realtime_usec();
    request.store_dir = config_.store_dir;
    request.policy = policy_.for_unit(unit);
    request.sync = request.policy.sync;
    request.fault = standing_fault(config_.fault_flag);
    std::error_code error;
    std::filesystem::remove_all(job_dir(unit), error);  // of a soft reboot before
    if (mkdir(job_dir(unit).c_str(), 0700) != 0) return fail_errno(job_dir(unit), "cannot create the directory");
    return store_atomically(job_dir(unit), kRequestFile, to_json(request));
}

Result<pid_t> Shutdown::spawn(const char* verb, const std::string& unit) const {
    std::string verb_text = verb, dir = job_dir(unit), program = config_.worker;
    char* argv[] = {program.data(), verb_text.data(), dir.data(), nullptr};
    pid_t pid = 0;
    const int error = posix_spawn(&pid, program.c_str(), nullptr, nullptr, argv, environ);
    if (error != 0) return fail_errno(program, "cannot be started", error);
    return pid;
}

// All at once, but none before those that need it are down.
void Shutdown::start_free(std::vector<Candidate>& waiting) {
    std::set<std::string> up;
    for (const Candidate& candidate : waiting) up.insert(candidate.unit);
    for (const auto& [pid, unit] : running_) up.insert(unit);
    auto is_free = [&up](const Candidate& candidate) {
        return std::none_of(up.begin(), up.end(),
                            [&](const std::string& unit) { return candidate.before.contains(unit); });
    };
    for (const Candidate& candidate : waiting)
        if (is_free(candidate)) start(candidate.unit);
    std::erase_if(waiting, is_free);
}

void Shutdown::start(const std::string& unit) {
    auto begin = [&]() -> Result<pid_t> {
        CKPT_TRY(write_request(unit));
        return spawn("run", unit);
    };
    if (auto pid = begin()) running_[*pid] = unit;
    else report_ += pid.error().line() + "\n";
}

std::string Shutdown::outcome(const std::string& unit) const {
    auto result = load_result(job_dir(unit));
    if (!result) return result.error().line();
    if (!*result) return fmt::format("{}: its worker died", unit);
    return (*result)->ok ? fmt::format("{}: on disk, {}", unit, (*result)->image_id) : (*result)->error.line();
}

// A worker that died is undone before systemd goes on to stop the unit.
void Shutdown::await_one() {
    int status = 0;
    const pid_t pid = waitpid(-1, &status, 0);
    auto ended = running_.find(pid);
    if (pid < 0 && errno != EINTR) running_.clear();
    if (ended == running_.end()) return;
    const std::string unit = std::move(ended->second);
    running_.erase(ended);
    if (access((job_dir(unit) + "/undo").c_str(), F_OK) == 0)
        if (auto recovery = spawn("recover", unit)) waitpid(*recovery, &status, 0);
    report_ += outcome(unit) + "\n";
}

Result<std::string> Shutdown::run(std::vector<Candidate> waiting) {
    for (const std::string& dir : {config_.jobs_dir.substr(0, config_.jobs_dir.rfind('/')), config_.jobs_dir})
        CKPT_TRY(make_directory(dir, 0700));
    while (!waiting.empty() || !running_.empty()) {
        start_free(waiting);
        if (running_.empty()) break;  // what is left waits for each other: nobody's order
        await_one();
    }
    return report_;
}

}  // namespace

Result<std::string> checkpoint_at_shutdown(const ShutdownConfig& config) {
    CKPT_ASSIGN(auto systemd, Systemd::connect());
    CKPT_ASSIGN(const std::string state, systemd.system_state());
    if (state != "stopping") return std::string();
    CKPT_ASSIGN(const auto policy, load_policy(config.vendor_policy_dir, config.admin_policy_dir));
    CKPT_ASSIGN(auto candidates, find_candidates(systemd, policy));
    if (candidates.empty()) return std::string();
    return Shutdown(config, policy).run(std::move(candidates));
}

}  // namespace checkpointd
