// SPDX-License-Identifier: LGPL-2.1-or-later
#include "service/worker/jobs.h"

#include <algorithm>
#include <fcntl.h>
#include <thread>
#include <unistd.h>

#include "core/base/io.h"
#include "core/kernel/cgroup.h"
#include "core/restore/image_plugins.h"
#include "core/restore/restore.h"
#include "core/transaction/undo_kinds.h"
#include "images/content_check.h"
#include "images/image_store.h"
#include "images/manifest.h"
#include "service/worker/plugin_options.h"
#include "service/worker/settle.h"
#include "units/cold_start.h"
#include "units/files_archive.h"
#include "units/gate.h"
#include "units/origin.h"
#include "units/pid_floor.h"
#include "units/pid_namespace.h"
#include "units/pid_reservation.h"
#include "units/resolve.h"
#include "units/stage.h"
#include "units/suspend.h"
#include "units/systemd.h"
#include "units/tell.h"

namespace checkpointd {
namespace {

using images::ImageState;
using images::ImageStore;

// `others` have the rest of the processors.
unsigned verify_threads(unsigned others) {
    const unsigned processors = std::thread::hardware_concurrency();
    return processors > others ? std::min(4u, processors - others) : 1;
}

Result<UnitFacts> read_facts(const images::ImageDir& dir) {
    CKPT_ASSIGN(auto text, read_file(dir.fd(), kUnitFactsName));
    return unit_facts_from_json(text);
}

// One line of an error, with what lies beneath.
std::string reason_of(const Error& error) {
    constexpr size_t kMost = 3;
    std::string text = error.line();
    for (size_t i = 0; i < std::min(kMost, error.causes.size()); ++i) text += "; " + error.causes[i].line();
    return text;
}

// Who has which of our PIDs.
std::string holders_of(const Error& taken) {
    constexpr size_t kMost = 3;
    std::string text;
    for (size_t i = 0; i < std::min(kMost, taken.causes.size()); ++i)
        text += fmt::format("{}{} {}", i == 0 ? "" : "; ", taken.causes[i].object, taken.causes[i].message);
    if (taken.causes.size() > kMost)
        text += fmt::format("; and {} more", taken.causes.size() - kMost);
    return text;
}

// The helper of a unit that others wait for gives up soon after the job must have ended.
StageOptions at_gate(const JobRequest& request) {
    constexpr auto kGrace = std::chrono::seconds(10);
    StageOptions options;
    const Microseconds total = request.policy.timeout(Phase::kTotal);
    if (total < options.helper_deadline - kGrace)
        options.helper_deadline = std::chrono::ceil<std::chrono::seconds>(total) + kGrace;
    return options;
}

// One restore. Members in the order in which they come to be: on failure the processes die first, then
// the unit leaves the stage.
class RestoreJob {
  public:
    RestoreJob(const JobRequest& request, Journal& journal, JobSteps& steps, Systemd systemd,
               ImageStore store)
        : request_(request), journal_(journal), steps_(steps), systemd_(std::move(systemd)),
          store_(std::move(store)) {}

    Result<JobResult> run();
    // Is the unit going to start cold when this ends, and does not know why yet?
    bool owes_reason() const { return cold_start_ != 0; }

  private:
    Result<void> open_image();
    Result<void> verify_image();
    Result<void> begin_pages_check();
    Result<void> verify_pages();
    Result<void> check_state(const images::StoredImage& stored);
    Result<void> check_fresh();
    void keep_pids_free() const;
    Result<void> stage();
    Result<void> stage_beside(Placeholder placeholder);
    Result<void> free_pids();
    Result<void> put_files_back();
    RestoreRequest engine_request();
    Result<std::unique_ptr<RestorePlan>> plan();
    Result<void> make_pid_namespace(Error taken);
    Result<void> build();
    Result<void> consume();
    void unconsume();
    Result<void> run_at_once();
    void tell();
    Result<void> let_go();
    void end_reservations();
    JobResult result() const;

    const JobRequest& request_;
    Journal& journal_;
    JobSteps& steps_;
    Systemd systemd_;
    ImageStore store_;
    images::ImageId id_;
    ImageState state_ = ImageState::kReady;  // before us
    uint64_t cold_start_ = 0;                // undo of a unit at its gate, not done yet
    std::optional<images::ImageDir> image_;
    std::optional<images::ContentCheck> contents_;
    Result<void> pages_;  // of the check below; nobody else's until that has ended
    std::jthread pages_check_;
    images::ImageInfo info_;
    UnitFacts facts_;
    std::optional<Placeholder> placeholder_;  // of a suspended unit
    std::unique_ptr<UnitStage> staged_;
    std::unique_ptr<Plugins> plugins_;
    std::optional<PidNamespace> pid_namespace_;
    std::string pids_taken_;  // by whom: why there is one
    std::optional<BuiltForest> forest_;
    RestoreStats stats_;
    uint64_t tell_undo_ = 0;
    std::vector<std::pair<uint64_t, std::string>> pids_undo_;  // and for which image they were reserved
    pid_t main_pid_ = 0;
};

Result<void> RestoreJob::open_image() {
    CKPT_TRY(steps_.enter("restore.open"));
    CKPT_ASSIGN(id_, images::parse_image_id(request_.image_id));
    CKPT_ASSIGN(auto stored, store_.get(id_));
    if (stored.damage) return tl::unexpected(std::move(*stored.damage));
    CKPT_TRY(check_state(stored));
    CKPT_ASSIGN(image_, store_.open_image(id_));
    CKPT_TRY(verify_image());
    CKPT_ASSIGN(facts_, read_facts(*image_));
    info_ = std::move(stored.info);
    CKPT_TRY(steps_.enter("restore.fresh"));
    CKPT_TRY(check_fresh());
    CKPT_ASSIGN(plugins_,
                plugins_for_image(plugin_options(request_, journal_, steps_, image_->fd()),
                                  steps_.deadline()));
    return begin_pages_check();
}

// Memory is nothing but copied, so it may be checked beside that, as long as it is before anything runs.
// A unit at its gate was not touched yet and would have to be stopped again: there all of it comes first.
Result<void> RestoreJob::verify_image() {
    using images::VerifyDepth;
    CKPT_TRY(steps_.enter("restore.verify"));
    if (request_.at_gate) return images::verify(*image_, VerifyDepth::kFull, verify_threads(0));
    return images::verify(*image_, VerifyDepth::kButMemory);
}

// What plugins read themselves is not read a second time.
Result<void> RestoreJob::begin_pages_check() {
    if (request_.at_gate) return {};
    CKPT_ASSIGN(auto manifest, images::read_manifest(*image_));
    std::erase_if(manifest.files, [this](const auto& file) { return !plugins_->reads_contents(file.name); });
    contents_.emplace(std::move(manifest.files));
    plugins_->check_contents(&*contents_);
    pages_check_ = std::jthread([this](const std::stop_token& stop) {
        pages_ = images::verify(*image_, images::VerifyDepth::kFull, verify_threads(1), stop, contents_->names());
    });
    return {};
}

Result<void> RestoreJob::verify_pages() {
    CKPT_TRY(steps_.enter("restore.verify-pages"));
    if (!pages_check_.joinable()) return {};
    pages_check_.join();
    CKPT_TRY(pages_);
    return contents_->finish(*image_, verify_threads(0));
}

Result<void> RestoreJob::check_state(const images::StoredImage& stored) {
    state_ = stored.state;
    if (state_ == ImageState::kPending)
        return fail(ErrorKind::kConflict, request_.image_id,
                    "is pending: the unit that it was taken of may still run");
    if (request_.at_gate && state_ != ImageState::kReady)
        return fail(ErrorKind::kConflict, request_.image_id,
                    fmt::format("is {} meanwhile", to_string(state_)));
    return {};
}

// Who asks for an image by its id that is known to be stale gets it. A suspended unit was not started since: as
// for one that runs, what its unit files say by now is for its next start.
Result<void> RestoreJob::check_fresh() {
    if (!facts_.is_scope()) {
        CKPT_ASSIGN(placeholder_, find_placeholder(systemd_, facts_.id));
    }
    if (state_ == ImageState::kStale) return {};
    UnitOrigin origin = facts_.origin;
    if (placeholder_) origin.unit_files.clear();
    auto fresh = check_origin(systemd_, facts_.id, origin);
    if (fresh || fresh.error().kind != ErrorKind::kConflict) return fresh;
    CKPT_TRY(store_.set_state(id_, ImageState::kStale, fresh.error().line()));
    return tl::unexpected(std::move(fresh).error().with_remedy(
        fmt::format("the image is stale; crctl restore {} restores it nevertheless", id_.text())));
}

// What systemd and we start from here on must not take a number that the image needs. Where that cannot
// be had, the engine names whoever holds a PID.
void RestoreJob::keep_pids_free() const {
    auto highest = highest_image_pid(request_.store_dir);
    if (highest) (void)raise_pid_floor(*highest);
}

Result<void> RestoreJob::stage() {
    if (placeholder_) return stage_beside(std::move(*placeholder_));
    const auto deadline = steps_.deadline_of(Phase::kStart);
    auto staged = request_.at_gate
                      ? StagedUnit::adopt(systemd_, journal_, facts_, at_gate(request_), cold_start_, steps_, deadline)
                      : StagedUnit::start(systemd_, journal_, facts_, {}, steps_, deadline);
    if (!staged) cold_start_ = 0;
    if (!staged) return tl::unexpected(std::move(staged).error());
    staged_ = std::make_unique<StagedUnit>(std::move(*staged));
    return {};
}

Result<void> RestoreJob::stage_beside(Placeholder placeholder) {
    if (placeholder.image() != id_.text())
        return fail(ErrorKind::kConflict, facts_.id,
                    fmt::format("it is suspended, on image {}", placeholder.image()),
                    "restore that one, or stop the unit first");
    CKPT_ASSIGN(staged_, SuspendedUnit::open(systemd_, journal_, facts_, std::move(placeholder), steps_,
                                             steps_.deadline_of(Phase::kStart)));
    return {};
}

// The image needs what is reserved for it, or for another image of the unit.
Result<void> RestoreJob::free_pids() {
    CKPT_ASSIGN(auto images, store_.list(facts_.id));
    std::erase_if(images, [](const auto& image) { return !has_reservation(image.id.text()); });
    if (images.empty())
        return {};
    CKPT_TRY(steps_.enter("restore.free-pids"));
    for (const auto& image : images) {
        CKPT_ASSIGN(const uint64_t undo, settle_pids(journal_, request_.store_dir, id_, image.id));
        pids_undo_.emplace_back(undo, image.id.text());
        CKPT_TRY(give_back_numbers(systemd_, image.id.text(), steps_.deadline_of(Phase::kRebuild)));
    }
    return {};
}

Result<void> RestoreJob::put_files_back() {
    if (!staged_->has_fresh_directories()) return {};
    auto archive = open_at(image_->fd(), kUnitFilesName, O_RDONLY);
    if (!archive && archive.error().errno_code == ENOENT) return {};
    if (!archive) return tl::unexpected(std::move(archive).error());
    CKPT_TRY(steps_.enter("restore.unit-files"));
    return restore_unit_files(facts_, staged_->helper_pid(), archive->get());
}

RestoreRequest RestoreJob::engine_request() {
    RestoreRequest request(steps_);
    request.image_dir_fd = image_->fd();
    request.namespaces_of_pidfd = pid_namespace_ ? pid_namespace_->init_pidfd() : staged_->helper_pidfd();
    request.in_pid_namespace = pid_namespace_.has_value();
    request.cgroup_fd = staged_->cgroup_fd();
    for (const auto& [key, fd] : staged_->externals()) request.externals[key] = fd.get();
    request.parent = RestoreRequest::Parent::kSibling;
    request.plugins = plugins_.get();
    request.check_memory = [this] { return verify_pages(); };
    // systemd believes no answer to a reload that is dated before its request.
    request.clocks_may_lag = facts_.type != "notify-reload";
    request.deadline = steps_.deadline_of(Phase::kRebuild);
    return request;
}

Result<std::unique_ptr<RestorePlan>> RestoreJob::plan() {
    CKPT_TRY(steps_.enter("restore.plan"));
    return plan_restore(engine_request());
}

// `taken` names whoever has our PIDs, and is the answer should this be impossible.
Result<void> RestoreJob::make_pid_namespace(Error taken) {
    CKPT_TRY(steps_.enter("restore.pid-namespace"));
    // In the last of the unit's groups: one that hands controllers down may hold no process, and has others below.
    const std::string group = facts_.subgroups.empty() ? "" : facts_.subgroups.back().path;
    CKPT_ASSIGN(ScopedFd cgroup,
                open_at(AT_FDCWD, staged_->cgroup_dir() + group, O_RDONLY | O_DIRECTORY));
    auto made = PidNamespace::make({.helper_pid = staged_->helper_pid(),
                                    .helper_pidfd = staged_->helper_pidfd(),
                                    .cgroup_fd = cgroup.get()},
                                   steps_.deadline_of(Phase::kRebuild));
    if (!made) {
        taken.causes.push_back(std::move(made).error());
        return tl::unexpected(std::move(taken));
    }
    pids_taken_ = holders_of(taken);
    pid_namespace_.emplace(std::move(*made));
    return {};
}

Result<void> RestoreJob::build() {
    CKPT_ASSIGN(auto plan, this->plan());
    if (request_.policy.pid_namespace) {
        auto free = check_conflicts(*plan);
        if (!free && free.error().kind != ErrorKind::kConflict)
            return free;
        if (!free) {
            CKPT_TRY(make_pid_namespace(std::move(free).error()));
            CKPT_ASSIGN(plan, this->plan());
        }
    }
    CKPT_ASSIGN(auto forest, execute_plan(engine_request(), std::move(plan), stats_));
    main_pid_ = forest.main_pid();
    forest_.emplace(std::move(forest));
    // Seen from outside a PID namespace, now or then, it is another. A suspended unit may have a file of an
    // attempt that failed later.
    if (main_pid_ != facts_.main_pid || !staged_->has_fresh_directories())
        CKPT_TRY(correct_pid_file(facts_, main_pid_));
    return pid_namespace_ ? pid_namespace_->keep_for(forest_->roots()) : Result<void>();
}

// The tasks are let go one by one; should we die in between, some of a unit must not run without the others.
// So they run all at once, by the thaw of their cgroup, or not at all.
Result<void> RestoreJob::run_at_once() {
    CKPT_ASSIGN(const uint64_t thaw, undo_by_thawing(journal_, staged_->cgroup_dir()));
    CKPT_ASSIGN(const uint64_t empty, staged_->undo_by_ending_all());
    CKPT_ASSIGN(auto freeze, CgroupFreeze::freeze(staged_->cgroup_dir(),
                                                  steps_.deadline_of(Phase::kRebuild)));
    auto let_go = [&]() -> Result<void> {
        CKPT_TRY(forest_->commit());
        CKPT_TRY(steps_.enter("restore.run"));
        if (pid_namespace_)
            pid_namespace_->let_go();
        return journal_.drop(empty);
    };
    if (auto done = let_go(); !done) {
        (void)journal_.undo(empty);  // before the thaw
        return done;
    }
    steps_.no_way_back();
    tell();
    CKPT_TRY(freeze.thaw());
    return journal_.drop(thaw);
}

// The tasks do not run yet, so a signal is the first thing that the program sees. What could not be
// said now is said when the journal is undone.
void RestoreJob::tell() {
    if (tell_undo_ == 0 || !steps_.enter("restore.tell"))
        return;
    if (tell_after(facts_, main_pid_, TellOutcome::kRestored))
        (void)journal_.drop(tell_undo_);
}

// Before anything of it runs, and on disk: after a power failure it must not be restored a second time.
Result<void> RestoreJob::consume() {
    CKPT_TRY(steps_.enter("restore.mark-consumed"));
    if (request_.policy.reuse) return {};
    return store_.set_state(id_, ImageState::kConsumed,
                            fmt::format("restored by job {}", request_.id));
}

void RestoreJob::unconsume() {
    if (!request_.policy.reuse) (void)store_.set_state(id_, state_, "");
}

// From two owners to one: PID 1 learns who the main process is, then the tasks run. What is true of the
// image is decided by whether they live, also when we die in between.
Result<void> RestoreJob::let_go() {
    uint64_t settle = 0;
    auto commit = [&]() -> Result<void> {
        CKPT_ASSIGN(settle, settle_restore(journal_, request_.store_dir,
                                           {id_, state_, request_.policy.reuse}, main_pid_));
        CKPT_ASSIGN(tell_undo_,
                    undo_by_telling(journal_, facts_, main_pid_, TellOutcome::kRestored));
        auto done = consume();
        if (done) done = run_at_once();
        if (done) return done;
        // Nothing of it runs, nor will: the forest is killed by whoever holds it.
        unconsume();
        CKPT_TRY(journal_.drop(settle));
        return done;
    };
    CKPT_TRY(staged_->hand_over(main_pid_, commit, steps_, steps_.deadline_of(Phase::kStart)));
    end_reservations();
    return journal_.drop(settle);
}

// The undo looks at the image's state, and an image that is reused stays ready.
void RestoreJob::end_reservations() {
    for (const auto& [undo, image] : pids_undo_) {
        const bool ended = request_.policy.reuse && end_reservation(systemd_, image);
        (void)(ended ? journal_.drop(undo) : journal_.undo(undo));
    }
}

JobResult RestoreJob::result() const {
    JobResult result;
    result.ok = true;
    result.image_id = request_.image_id;
    result.bytes = info_.bytes;
    result.pages = stats_.bytes_read / 4096;
    result.main_pid = main_pid_;
    result.pid_namespace = pids_taken_;
    return result;
}

Result<JobResult> RestoreJob::run() {
    if (request_.at_gate) {
        CKPT_ASSIGN(cold_start_, undo_by_cold_start(journal_, request_.unit,
                                                    fmt::format("the restore by job {} was cut off",
                                                                request_.id)));
    }
    CKPT_TRY(open_image());
    keep_pids_free();
    CKPT_TRY(stage());
    CKPT_TRY(put_files_back());
    CKPT_TRY(free_pids());
    CKPT_TRY(build());
    CKPT_TRY(let_go());
    return result();
}

}  // namespace

Result<JobResult> run_restore(const JobRequest& request, Journal& journal, JobSteps& steps) {
    CKPT_ASSIGN(auto systemd, Systemd::connect());
    CKPT_ASSIGN(auto store, ImageStore::open(request.store_dir, false));
    RestoreJob job(request, journal, steps, std::move(systemd), std::move(store));
    auto done = job.run();
    if (!done && job.owes_reason()) (void)note_cold_start(request.unit, reason_of(done.error()));
    return done;
}

Result<std::string> explain_image(const std::string& store_dir, const std::string& image_id) {
    CKPT_ASSIGN(auto id, images::parse_image_id(image_id));
    CKPT_ASSIGN(auto store, ImageStore::open(store_dir, false));
    CKPT_ASSIGN(auto image, store.open_image(id));
    CKPT_ASSIGN(auto facts, read_facts(image));
    SilentSteps silent;
    RestoreRequest request(silent);
    request.image_dir_fd = image.fd();
    request.parent = RestoreRequest::Parent::kSibling;
    request.imagined_namespaces = true;
    request.cgroup_fd = image.fd();
    // Nothing is opened by planning; any descriptor will do for those that the stage will hand out.
    for (const UnitExternal& external : facts.externals) request.externals[external.key] = image.fd();
    CKPT_ASSIGN(auto plan, plan_restore(request));
    return print_plan(*plan);
}

}  // namespace checkpointd
