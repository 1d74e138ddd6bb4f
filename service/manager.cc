// SPDX-License-Identifier: LGPL-2.1-or-later
#include "service/manager.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <dirent.h>
#include <fcntl.h>
#include <filesystem>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/core.h>

#include "core/base/directory.h"
#include "core/base/io.h"

namespace checkpointd {
namespace {

constexpr unsigned kMaxRunningJobs = 64;  // every user-controllable resource has a limit

// The names in `dir` that are numbers: directories of jobs.
std::vector<uint32_t> list_job_ids(const std::string& dir) {
    std::vector<uint32_t> ids;
    std::unique_ptr<DIR, int (*)(DIR*)> handle(opendir(dir.c_str()), closedir);
    while (const dirent* entry = handle ? readdir(handle.get()) : nullptr) {
        const std::string_view name = entry->d_name;
        uint32_t id = 0;
        auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), id);
        if (error == std::errc() && end == name.data() + name.size()) ids.push_back(id);
    }
    std::sort(ids.begin(), ids.end());
    return ids;
}

// The units of other images that a start begins with are stopped or suspended, which ends with a reload of systemd.
bool is_reused_snapshot(const Job& job) {
    const JobRequest& request = job.request();
    return job.state() == JobState::kDone && request.type == JobType::kCheckpoint && request.mode == "snapshot" &&
           request.policy.reuse;
}

JobResult failure(Error error) {
    JobResult result;
    result.error = std::move(error);
    return result;
}

}  // namespace

Manager::Manager(ManagerConfig config, EventLoop& loop, WorkerControl& workers, Helpers& helpers,
                 ImageCatalog& images)
    : config_(std::move(config)), loop_(loop), workers_(workers), helpers_(helpers), images_(images),
      armed_(config_.armed_dir()) {
    workers_.on_gone([this](uint32_t id, std::optional<Error> error) {
        worker_gone(id, std::move(error));
    });
}

Result<void> Manager::start() {
    CKPT_TRY(make_run_dir());
    CKPT_ASSIGN(policy_, load_policy(config_.vendor_policy_dir, config_.admin_policy_dir));
    CKPT_TRY(adopt_all());
    touch();
    return {};
}

Result<void> Manager::make_run_dir() {
    CKPT_TRY(make_directory(config_.run_dir, 0700));
    return make_directory(config_.jobs_dir(), 0700);
}

Result<void> Manager::reload_policy() {
    CKPT_ASSIGN(Policy now, load_policy(config_.vendor_policy_dir, config_.admin_policy_dir));
    const bool orders_shutdown = now.ever_at_shutdown() || policy_.ever_at_shutdown();
    policy_ = std::move(now);
    if (orders_shutdown) reload_later();
    return {};
}

bool Manager::faults_allowed() const {
    return checkpointd::faults_allowed(config_.fault_flag());
}

void Manager::touch() {
    loop_.cancel(idle_timer_);
    if (policy_.idle_timeout == kForever) return;
    idle_timer_ = loop_.after(policy_.idle_timeout, [this] {
        if (running() > 0) return touch();
        if (idle_) idle_();
    });
}

Result<void> Manager::refuse_conflict(const std::string& unit) const {
    if (running() >= kMaxRunningJobs)
        return fail(ErrorKind::kConflict, unit, fmt::format("{} jobs run already", kMaxRunningJobs),
                    "try again when some have ended");
    for (const auto& [id, job] : jobs_)
        if (!job->finished() && job->request().unit == unit)
            return fail(ErrorKind::kConflict, unit,
                        fmt::format("job {} ({}) works on this unit", id,
                                    to_string(job->request().type)),
                        fmt::format("wait for it, or cancel it: crctl jobs cancel {}", id));
    return {};
}

Result<const Job*> Manager::checkpoint(const std::string& unit, const CheckpointOptions& options,
                                       uid_t caller) {
    JobRequest request;
    CKPT_ASSIGN(request.unit, normalise_unit(unit));
    request.type = JobType::kCheckpoint;
    request.mode = options.mode;
    request.caller_uid = caller;
    request.policy = policy_.for_unit(request.unit);
    request.sync = options.sync.value_or(request.policy.sync);
    if (options.timeout) request.policy.timeouts[Phase::kTotal] = *options.timeout;
    request.fault = options.fault;
    return submit(std::move(request));
}

Result<ImageSummary> Manager::find_image(const std::string& target) {
    if (target.find('/') != std::string::npos) return images_.get(target);
    CKPT_ASSIGN(auto unit, normalise_unit(target));
    CKPT_ASSIGN(auto all, images_.list());
    std::string others;
    for (const ImageSummary& image : all) {
        if (image.unit != unit) continue;
        if (image.state == "ready") return image;
        others += fmt::format("{}{} is {}", others.empty() ? "" : ", ", image.id, image.state);
    }
    if (!others.empty())
        return fail(ErrorKind::kNotFound, unit, "has no image that is ready: " + others,
                    "restore one of them by its id");
    return fail(ErrorKind::kNotFound, unit, "has no image",
                "crctl list shows what there is; crctl checkpoint makes one");
}

Result<const Job*> Manager::restore(const std::string& target, const RestoreOptions& options,
                                    uid_t caller) {
    CKPT_ASSIGN(auto image, find_image(target));
    JobRequest request;
    request.type = JobType::kRestore;
    request.unit = image.unit;
    request.image_id = image.id;
    request.caller_uid = caller;
    request.policy = policy_.for_unit(request.unit);
    request.sync = request.policy.sync;
    if (options.timeout) request.policy.timeouts[Phase::kTotal] = *options.timeout;
    request.fault = options.fault;
    return submit(std::move(request));
}

std::string Manager::how_enabled(const std::string& unit) const {
    if (armed_.contains(unit)) return "enabled";
    return policy_.for_unit(unit).restore_at_boot ? "policy" : "disabled";
}

Result<void> Manager::may_revive(const std::string& unit, const ImageSummary& image) const {
    if (image.mode == "snapshot" && !policy_.for_unit(unit).reuse)
        return fail(ErrorKind::kConflict, image.id, "was taken while the unit went on: its state is older",
                    "the policy's reuse: always starts the unit from it");
    if (how_enabled(unit) != "disabled" || image.wakeable) return {};
    return fail(ErrorKind::kConflict, unit, "is not enabled to be restored when it starts",
                "crctl enable it");
}

Result<const Job*> Manager::revive(const std::string& name, uid_t caller) {
    CKPT_ASSIGN(const auto unit, normalise_unit(name));
    for (const auto& [id, job] : jobs_)
        if (!job->finished() && job->request().unit == unit && job->request().at_gate) return job.get();
    reload_later();  // whatever becomes of it, its image is not what it was
    CKPT_ASSIGN(auto image, find_image(unit));
    CKPT_TRY(may_revive(unit, image));
    JobRequest request;
    request.type = JobType::kRestore;
    request.unit = unit;
    request.image_id = image.id;
    request.at_gate = true;
    request.caller_uid = caller;
    request.policy = policy_.for_unit(unit);
    request.sync = request.policy.sync;
    request.fault = standing_fault(config_.fault_flag());
    return submit(std::move(request));
}

void Manager::enable(const std::string& name, Helpers::Done done) {
    auto unit = normalise_unit(name);
    if (!unit) return done(tl::unexpected(std::move(unit).error()));
    helpers_.check_enable(*unit, [this, unit = *unit, done](Result<std::string> checked) {
        if (checked)
            if (auto added = armed_.add(unit); !added) checked = tl::unexpected(std::move(added).error());
        done(std::move(checked));
    });
}

Result<void> Manager::disable(const std::string& name) {
    CKPT_ASSIGN(const auto unit, normalise_unit(name));
    CKPT_TRY(armed_.remove(unit));
    if (policy_.for_unit(unit).restore_at_boot)
        return fail(ErrorKind::kConflict, unit, "stays enabled: the policy says restore-at-boot: yes",
                    "set it to no for this unit in /etc/checkpointd/policy.d");
    return {};
}

Result<std::vector<UnitSummary>> Manager::units() {
    CKPT_ASSIGN(auto images, images_.list());
    std::map<std::string, std::string> ready;  // unit -> its newest image that is ready
    for (const std::string& unit : armed_.list()) ready[unit];
    for (const ImageSummary& image : images) {
        std::string& newest = ready[image.unit];
        if (newest.empty() && image.state == "ready") newest = image.id;
    }
    std::vector<UnitSummary> all;
    for (const auto& [unit, image] : ready) all.push_back({unit, how_enabled(unit), image});
    return all;
}

// One reload for all that ends within a moment.
void Manager::reload_later() {
    loop_.cancel(reload_timer_);
    reload_timer_ = loop_.after(config_.reload_delay, [this] {
        const bool reviving = std::any_of(jobs_.begin(), jobs_.end(), [](const auto& entry) {
            return !entry.second->finished() && entry.second->request().at_gate;
        });
        if (reviving) return reload_later();
        workers_.reload_units(policy_.ever_at_shutdown());
    });
}

Result<const Job*> Manager::submit(JobRequest request) {
    CKPT_TRY(refuse_conflict(request.unit));
    request.id = next_id_++;
    request.created_usec = realtime_usec();
    request.store_dir = config_.store_dir;
    request.channel = config_.channel();
    const std::string dir = fmt::format("{}/{}", config_.jobs_dir(), request.id);
    CKPT_TRY(make_directory(dir, 0700));
    CKPT_TRY(store_atomically(dir, kRequestFile, to_json(request)));
    auto job = std::make_unique<Job>(std::move(request), dir);
    Job& ref = *job;
    jobs_[ref.id()] = std::move(job);
    if (observer_) observer_->job_new(ref);
    workers_.start(ref);
    touch();
    return &ref;
}

Result<void> Manager::cancel(uint32_t id) {
    auto found = jobs_.find(id);
    if (found == jobs_.end())
        return fail(ErrorKind::kNotFound, fmt::format("job {}", id), "there is no such job");
    Job& job = *found->second;
    if (job.finished())
        return fail(ErrorKind::kConflict, fmt::format("job {}", id),
                    fmt::format("has ended already ({})", to_string(job.state())));
    changed(job, job.cancelling());
    workers_.cancel(id);
    return {};
}

void Manager::explain(const std::string& image_id, Helpers::Done done) {
    auto image = images_.get(image_id);
    if (!image) return done(tl::unexpected(std::move(image).error()));
    helpers_.explain(image->id, std::move(done));
}

void Manager::remove_image(const std::string& image_id, const RemoveOptions& options,
                           Helpers::Done done) {
    auto image = images_.get(image_id);
    if (!image) return done(tl::unexpected(std::move(image).error()));
    if (auto free = refuse_conflict(image->unit); !free)
        return done(tl::unexpected(std::move(free).error()));
    if (image->state == "ready" && !options.force)
        return done(fail(ErrorKind::kConflict, image_id,
                         "is ready to be restored: it may be the only copy of the unit's state",
                         "crctl rm --force removes it nevertheless"));
    helpers_.remove_image(image->id, std::move(done));
}

void Manager::progress(const ProgressMessage& message) {
    auto found = jobs_.find(message.job);
    if (found == jobs_.end()) return;
    changed(*found->second, found->second->apply(message));
    // Asked too early, when there was no process yet, it would never learn of it.
    if (found->second->state() == JobState::kCancelling) workers_.cancel(message.job);
}

void Manager::changed(const Job& job, const std::vector<std::string>& properties) {
    if (observer_ && !properties.empty()) observer_->job_changed(job, properties);
}

Result<void> Manager::adopt_all() {
    for (uint32_t id : list_job_ids(config_.jobs_dir())) {
        next_id_ = std::max(next_id_, id + 1);
        adopt(id);
    }
    return {};
}

// What an earlier daemon left: a running worker, a finished job, or a dead one.
void Manager::adopt(uint32_t id) {
    const std::string dir = fmt::format("{}/{}", config_.jobs_dir(), id);
    auto request = load_request(dir);
    if (!request || request->id != id) {
        // Without a request no worker was started: it is written before.
        std::error_code ignored;
        std::filesystem::remove_all(dir, ignored);
        return;
    }
    auto job = std::make_unique<Job>(std::move(*request), dir);
    Job& ref = *job;
    jobs_[id] = std::move(job);
    if (observer_) observer_->job_new(ref);
    // The call that started this daemon may be for the same unit: it must not wait for a job that is over.
    auto ended = load_result(dir);
    if (ended && *ended && access((dir + "/undo").c_str(), F_OK) != 0)
        return finish(ref, std::move(**ended));
    workers_.adopt(ref);
}

// The worker's process is no more. What it left in its directory says how it ended.
void Manager::worker_gone(uint32_t id, std::optional<Error> error) {
    auto found = jobs_.find(id);
    if (found == jobs_.end() || found->second->finished()) return;
    settle(id, std::move(error));
}

void Manager::settle(uint32_t id, std::optional<Error> error) {
    Job& job = *jobs_.at(id);
    auto stored = load_result(job.dir());
    JobResult result;
    if (stored && *stored)
        result = std::move(**stored);
    else if (error)
        result = failure(std::move(*error));
    else
        result = failure(stored ? job.death(monotonic_usec()) : std::move(stored).error());
    if (stored && *stored && access((job.dir() + "/undo").c_str(), F_OK) != 0)
        return finish(job, std::move(result));
    changed(job, job.recovering());
    const bool has_told = stored && *stored;
    helpers_.recover(job.dir(), [this, id, has_told,
                                 result = std::move(result)](const Result<std::string>& recovery) {
        recovered(id, result, recovery);
        if (death_ && (!has_told || !recovery)) death_(*jobs_.at(id));
    });
}

void Manager::recovered(uint32_t id, JobResult result, const Result<std::string>& recovery) {
    if (!recovery) {
        // Never reported as success: something of the job is still there.
        Error outer = result.ok ? Error{ErrorKind::kInternal, jobs_.at(id)->request().unit,
                                        "the job did its work but left steps that cannot be undone",
                                        {}, 0, {}}
                                : std::move(result.error);
        outer.causes.push_back(recovery.error());
        result.ok = false;
        result.error = std::move(outer);
    }
    finish(*jobs_.at(id), std::move(result));
    reload_later();  // the image's state was settled after the reload of the other undo steps
}

void Manager::finish(Job& job, JobResult result) {
    // A later daemon must find how a recovered job ended, and must not recover it again.
    if (!result.ok) (void)store_atomically(job.dir(), kResultFile, to_json(result));
    changed(job, job.finish(std::move(result), realtime_usec()));
    if (observer_) observer_->job_removed(job);
    if (is_reused_snapshot(job)) reload_later();
    touch();
    loop_.after(config_.linger, [this, id = job.id()] { forget(id); });
}

void Manager::forget(uint32_t id) {
    auto found = jobs_.find(id);
    if (found == jobs_.end()) return;
    if (observer_) observer_->job_forgotten(*found->second);
    // What could not be undone stays for the next daemon to try again.
    std::error_code ignored;
    if (access((found->second->dir() + "/undo").c_str(), F_OK) != 0)
        std::filesystem::remove_all(found->second->dir(), ignored);
    jobs_.erase(found);
}

std::vector<const Job*> Manager::jobs() const {
    std::vector<const Job*> all;
    for (const auto& [id, job] : jobs_) all.push_back(job.get());
    return all;
}

const Job* Manager::find(uint32_t id) const {
    auto found = jobs_.find(id);
    return found == jobs_.end() ? nullptr : found->second.get();
}

unsigned Manager::running() const {
    return static_cast<unsigned>(std::count_if(
        jobs_.begin(), jobs_.end(), [](const auto& entry) { return !entry.second->finished(); }));
}

}  // namespace checkpointd
