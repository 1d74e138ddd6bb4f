// SPDX-License-Identifier: LGPL-2.1-or-later
#include "service/worker/jobs.h"

#include <algorithm>
#include <sys/stat.h>
#include <thread>

#include <fmt/core.h>

#include "core/base/io.h"
#include "core/checkpoint/checkpoint.h"
#include "core/kernel/proc_status.h"
#include "core/transaction/undo_kinds.h"
#include "images/image_store.h"
#include "service/worker/plugin_options.h"
#include "service/worker/settle.h"
#include "units/files_archive.h"
#include "units/gate.h"
#include "units/pid_reservation.h"
#include "units/resolve.h"
#include "units/stop.h"
#include "units/suspend.h"
#include "units/systemd.h"
#include "units/tell.h"
#include "units/watchdog_feeder.h"

#include <fcntl.h>

namespace checkpointd {
namespace {

using images::ImageState;
using images::ImageStore;
using std::chrono::duration_cast;
using std::chrono::microseconds;

uint64_t to_usec(std::chrono::nanoseconds span) {
    return static_cast<uint64_t>(duration_cast<microseconds>(span).count());
}

Result<bool> is_frozen(const std::string& cgroup_dir) {
    CKPT_ASSIGN(const auto text, read_file(AT_FDCWD, cgroup_dir + "/cgroup.freeze"));
    return text.starts_with('1');
}

Result<uint64_t> total_size(const images::ImageDir& dir) {
    CKPT_ASSIGN(auto names, dir.file_names());
    uint64_t sum = 0;
    for (const std::string& name : names) {
        struct stat status {};
        if (fstatat(dir.fd(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) < 0)
            return fail_errno(name, "cannot stat");
        sum += static_cast<uint64_t>(status.st_size);
    }
    return sum;
}

// One checkpoint. The members are in the order in which they come to be; what a failure leaves is undone
// in the reverse order: tasks resume, then the drop-in goes, then the image.
class CheckpointJob {
  public:
    CheckpointJob(const JobRequest& request, Journal& journal, JobSteps& steps, Systemd systemd)
        : request_(request), journal_(journal), steps_(steps), systemd_(std::move(systemd)) {}

    Result<JobResult> run();

  private:
    Result<void> prepare();
    Result<void> register_image();
    Result<void> tell();
    Result<void> journal_thaw();
    Result<void> dump();
    void name_processes();
    Result<std::set<std::string>> find_stage_ties(const std::vector<pid_t>& pids);
    Result<void> add_our_files();
    Result<images::ImageInfo> describe() const;
    Result<void> commit();
    Result<void> go_on();
    Result<void> stop();
    Result<void> suspend();
    void have_no_way_back();
    Result<void> take_down();
    Result<void> mark_ready();
    void reserve_pids();
    Result<void> finish();
    void keep_newest();
    JobResult result() const;

    const JobRequest& request_;
    Journal& journal_;
    JobSteps& steps_;
    Systemd systemd_;
    WayDown way_ = WayDown::kStop;
    UnitFacts facts_;
    std::optional<ImageStore> store_;
    images::ImageId id_;
    uint64_t settle_undo_ = 0;
    uint64_t thaw_undo_ = 0;
    uint64_t tell_undo_ = 0;  // after the tasks go on
    std::optional<images::PendingImage> pending_;
    std::optional<CleanStop> stop_;
    std::unique_ptr<WatchdogFeeder> feeder_;  // until the tasks go on
    std::unique_ptr<Plugins> plugins_;
    std::optional<HeldForest> held_;
    std::optional<Suspension> suspension_;  // gives up before the tasks go on
    CheckpointStats stats_;
    images::ImageInfo info_;
    std::vector<pid_t> numbers_;  // to be reserved
    std::chrono::steady_clock::time_point frozen_since_;
    uint64_t frozen_usec_ = 0;
};

Result<void> CheckpointJob::prepare() {
    CKPT_TRY(steps_.enter("checkpoint.resolve"));
    CKPT_ASSIGN(way_, parse_way_down(request_.mode));
    CKPT_ASSIGN(facts_, resolve_unit(systemd_, request_.unit, way_, request_.policy.tell,
                                     request_.at_shutdown));
    CKPT_TRY(steps_.enter("checkpoint.create-image"));
    CKPT_TRY(register_image());
    if (way_ == WayDown::kSnapshot) return {};
    if (way_ == WayDown::kSuspend) {
        suspension_.emplace(systemd_, journal_);
        return suspension_->prepare(facts_, steps_);
    }
    stop_.emplace(systemd_, journal_, facts_);
    return stop_->prepare(steps_);
}

Result<void> CheckpointJob::register_image() {
    CKPT_ASSIGN(store_, ImageStore::open(request_.store_dir, true));
    CKPT_ASSIGN(id_, ImageStore::new_id(facts_.id));
    if (way_ == WayDown::kSnapshot) {
        CKPT_ASSIGN(settle_undo_, settle_snapshot(journal_, request_.store_dir, id_));
    } else {
        CKPT_ASSIGN(settle_undo_,
                    settle_checkpoint(journal_, request_.store_dir, id_, facts_.main_pid));
    }
    CKPT_ASSIGN(auto pending, store_->begin(id_));
    pending_.emplace(std::move(pending));
    return {};
}

// Before anything stands still. From here on the program hears as well what became of it.
Result<void> CheckpointJob::tell() {
    if (!facts_.tell.asks())
        return {};
    CKPT_TRY(steps_.enter("checkpoint.tell"));
    CKPT_ASSIGN(tell_undo_,
                undo_by_telling(journal_, facts_, facts_.main_pid, TellOutcome::kFailed));
    return tell_before(facts_, way_, steps_.deadline_of(Phase::kTell));
}

// The engine thaws what it froze, but not if it dies in between. Undone before devices are given back, whose drivers
// work in threads of the unit: so it is journaled after them.
Result<void> CheckpointJob::journal_thaw() {
    CKPT_ASSIGN(const bool frozen_by_others, is_frozen(facts_.cgroup_dir));
    if (frozen_by_others) return {};  // the engine refuses that
    CKPT_ASSIGN(thaw_undo_, undo_by_thawing(journal_, facts_.cgroup_dir));
    return {};
}

Result<void> CheckpointJob::dump() {
    CheckpointRequest dump;
    dump.target = CgroupTarget{facts_.cgroup_dir};
    dump.image_dir_fd = pending_->dir().fd();
    dump.find_externals = [this](const std::vector<pid_t>& pids) { return find_stage_ties(pids); };
    dump.main_pid = facts_.main_pid;
    dump.namespace_init = facts_.namespace_init;
    const Microseconds freeze = request_.policy.timeout(Phase::kFreeze);
    if (freeze < std::chrono::hours(1))
        dump.freeze_timeout = duration_cast<std::chrono::milliseconds>(freeze);
    dump.deadline = steps_.deadline_of(Phase::kTotal);
    feeder_ = WatchdogFeeder::make(facts_.main_pid, facts_.watchdog_usec);
    dump.before_freeze = [this] { return journal_thaw(); };
    dump.digests = true;
    CKPT_ASSIGN(plugins_, Plugins::for_checkpoint(plugin_options(request_, journal_, steps_, dump.image_dir_fd)));
    dump.plugins = plugins_.get();
    dump.goes_on = way_ == WayDown::kSnapshot;
    CKPT_ASSIGN(auto held, checkpoint(dump, steps_, stats_));
    CKPT_TRY(journal_.drop(thaw_undo_));
    held_.emplace(std::move(held));
    frozen_since_ = std::chrono::steady_clock::now() - stats_.frozen;
    name_processes();
    return {};
}

// While they stand still: a process that goes on may end, or make others. As the image numbers them.
void CheckpointJob::name_processes() {
    for (pid_t pid : held_->pids())
        info_.pids.push_back(static_cast<uint64_t>(innermost_pid(pid)));
    std::vector<pid_t> numbers = numbers_of(held_->pids());
    info_.max_pid = numbers.empty() ? 0 : static_cast<uint64_t>(numbers.back());
    if (way_ == WayDown::kStop && request_.policy.reserve_pids && !request_.at_shutdown)
        numbers_ = std::move(numbers);
}

// What was open when the unit was resolved may have been closed since, and its number given away.
Result<std::set<std::string>> CheckpointJob::find_stage_ties(const std::vector<pid_t>& pids) {
    CKPT_ASSIGN(facts_.externals, find_externals(facts_.main_pid, pids));
    CKPT_ASSIGN(facts_.subgroups, read_subgroups(facts_.cgroup_dir));
    std::set<std::string> keys;
    for (const UnitExternal& external : facts_.externals) keys.insert(external.key);
    return keys;
}

Result<void> CheckpointJob::add_our_files() {
    CKPT_ASSIGN(facts_.origin, origin_of(systemd_, facts_.id, held_->pids()));
    if (!has_unit_files(facts_)) return {};
    CKPT_TRY(steps_.enter("checkpoint.unit-files"));
    CKPT_ASSIGN(auto file, open_at(pending_->dir().fd(), kUnitFilesName,
                                   O_WRONLY | O_CREAT | O_EXCL, 0600));
    return save_unit_files(facts_, facts_.main_pid, file.get());
}

// What the unit's memory was lies in the page cache, or copies hold it: the unit goes on, and the rest is done
// beside it.
Result<void> CheckpointJob::go_on() {
    CKPT_TRY(steps_.enter("checkpoint.go-on"));
    if (!plugins_->empty())
        CKPT_TRY(steps_.enter("checkpoint.resume-devices"));
    CKPT_TRY(held_->resume());
    frozen_usec_ = to_usec(std::chrono::steady_clock::now() - frozen_since_);
    feeder_.reset();
    if (tell_undo_ != 0) {
        (void)tell_after(facts_, facts_.main_pid, TellOutcome::kWentOn);
        CKPT_TRY(journal_.drop(tell_undo_));
    }
    return held_->finish(steps_, stats_);
}

Result<images::ImageInfo> CheckpointJob::describe() const {
    CKPT_ASSIGN(auto info, images::local_image_info());
    info.unit = facts_.id;
    info.mode = request_.mode;
    CKPT_ASSIGN(info.bytes, total_size(pending_->dir()));
    info.duration_usec = to_usec(std::chrono::steady_clock::now() - frozen_since_);
    info.frozen_usec = way_ == WayDown::kSnapshot ? frozen_usec_ : info.duration_usec;
    info.main_pid = info_.pids.empty() ? 0 : info_.pids.front();
    info.pids = info_.pids;
    info.max_pid = info_.max_pid;
    auto listens = [](const UnitExternal& external) { return external.kind == ExternalKind::kListen; };
    if (std::any_of(facts_.externals.begin(), facts_.externals.end(), listens))
        info.extra[kListensName] = "yes";
    if (facts_.transient) info.extra[kNoUnitFile] = "yes";
    info.extra["pages"] = std::to_string(stats_.pages_written + stats_.shared_pages_written);
    return info;
}

Result<void> CheckpointJob::commit() {
    CKPT_TRY(steps_.enter("checkpoint.metadata"));
    for (auto& digest : stats_.digests) pending_->add_digest(std::move(digest));
    CKPT_TRY(pending_->add_file(kUnitFactsName, to_json(facts_)));
    CKPT_TRY(steps_.enter("checkpoint.commit"));
    CKPT_ASSIGN(info_, describe());
    images::CommitOptions options;
    options.sync = request_.sync;
    options.threads = std::clamp(std::thread::hardware_concurrency(), 1u, 4u);
    auto pending = std::move(*pending_);
    pending_.reset();
    CKPT_TRY(ImageStore::commit(std::move(pending), info_, options));
    return {};
}

Result<void> CheckpointJob::stop() {
    CKPT_TRY(stop_->stop(steps_, steps_.deadline_of(Phase::kStop), [this] {
        // The unit's processes end here; nothing that happens from now on may bring them back.
        steps_.no_way_back();
        feeder_.reset();
        return held_->kill();
    }));
    have_no_way_back();
    return {};
}

void CheckpointJob::have_no_way_back() {
    steps_.no_way_back();
    feeder_.reset();
    frozen_usec_ = to_usec(std::chrono::steady_clock::now() - frozen_since_);
}

// A placeholder becomes the main process; only then do the tasks end.
Result<void> CheckpointJob::suspend() {
    const auto deadline = steps_.deadline_of(Phase::kStop);
    CKPT_TRY(suspension_->put_placeholder(facts_, held_->pids(), id_.text(), steps_, deadline));
    return suspension_->end_tasks(steps_, deadline, [this] {
        have_no_way_back();
        return held_->kill();
    });
}

// Commits the image and decides on the unit, in the order that the way needs.
Result<void> CheckpointJob::take_down() {
    if (way_ == WayDown::kSnapshot) {
        CKPT_TRY(go_on());
        return commit();
    }
    CKPT_TRY(commit());
    return way_ == WayDown::kSuspend ? suspend() : stop();
}

Result<void> CheckpointJob::finish() {
    if (stop_) CKPT_TRY(stop_->finish(steps_));
    if (suspension_) CKPT_TRY(suspension_->finish(steps_));
    if (steps_.enter("checkpoint.retention")) keep_newest();
    return {};
}

Result<void> CheckpointJob::mark_ready() {
    CKPT_TRY(steps_.enter("checkpoint.mark-ready"));
    CKPT_TRY(store_->set_state(id_, ImageState::kReady, ""));
    CKPT_TRY(journal_.drop(tell_undo_));
    return journal_.drop(settle_undo_);
}

// The image is whole without it: a restore would name whoever has taken a PID.
void CheckpointJob::reserve_pids() {
    if (numbers_.empty() || !steps_.enter("checkpoint.reserve-pids"))
        return;
    (void)reserve_numbers(systemd_, id_.text(), numbers_, steps_.deadline_of(Phase::kStop));
}

// Retention never fails a job: too many images are better than a checkpoint reported as failed.
void CheckpointJob::keep_newest() {
    if (request_.policy.keep == 0) return;
    auto images = store_->list(facts_.id);
    if (!images || images->size() <= request_.policy.keep) return;
    images->resize(images->size() - request_.policy.keep);  // oldest first
    for (const auto& image : *images)
        if (image.id != id_) {
            (void)store_->remove(image.id);
            (void)end_reservation(systemd_, image.id.text());
        }
}

JobResult CheckpointJob::result() const {
    JobResult result;
    result.ok = true;
    result.image_id = id_.text();
    result.frozen_usec = frozen_usec_;
    result.bytes = info_.bytes;
    result.pages = stats_.pages_written + stats_.shared_pages_written;
    result.main_pid = facts_.main_pid;
    return result;
}

Result<JobResult> CheckpointJob::run() {
    CKPT_TRY(prepare());
    CKPT_TRY(tell());
    CKPT_TRY(dump());
    CKPT_TRY(add_our_files());
    CKPT_TRY(take_down());
    CKPT_TRY(mark_ready());
    reserve_pids();
    CKPT_TRY(finish());
    return result();
}

}  // namespace

Result<JobResult> run_checkpoint(const JobRequest& request, Journal& journal, JobSteps& steps) {
    CKPT_ASSIGN(auto systemd, Systemd::connect());
    CheckpointJob job(request, journal, steps, std::move(systemd));
    return job.run();
}

}  // namespace checkpointd
