// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The heart of the daemon: jobs, policy, images; no bus. Runs in the event loop's thread, never blocks
// for long: what takes time is done by workers and helpers, which answer through callbacks.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "config/policy/policy.h"
#include "core/base/error.h"
#include "service/armed_units.h"
#include "service/event_loop.h"
#include "service/job.h"
#include "service/options.h"

namespace checkpointd {

// One image as callers see it.
struct ImageSummary {
    std::string id;
    std::string unit;
    std::string state;  // pending, ready, consumed, stale
    std::string path;
    uint64_t created_usec = 0;
    uint64_t bytes = 0;
    uint64_t frozen_usec = 0;
    uint64_t total_usec = 0;
    uint64_t pages = 0;
    uint32_t processes = 0;
    std::string reason;     // of its state; may be empty
    std::string mode;       // stop, snapshot
    bool wakeable = false;  // taken in this boot, and its unit has sockets of PID 1's
};

// A unit that has an image or is enabled.
struct UnitSummary {
    std::string unit;
    std::string enabled;  // "enabled" by a mark, "policy", or "disabled"
    std::string image;    // the newest one that is ready; may be empty
};

// Where images are looked up.
class ImageCatalog {
  public:
    virtual ~ImageCatalog() = default;
    // Newest first.
    virtual Result<std::vector<ImageSummary>> list() = 0;
    virtual Result<ImageSummary> get(const std::string& id) = 0;
};

// Starts, finds and stops workers. Each job that was started or adopted ends in one call of `gone`.
class WorkerControl {
  public:
    // `error` is set when the worker never came to life.
    using Gone = std::function<void(uint32_t job, std::optional<Error> error)>;
    virtual ~WorkerControl() = default;
    virtual void on_gone(Gone gone) = 0;
    virtual void start(const Job& job) = 0;
    // Watches a worker that an earlier daemon started; gone at once when there is none.
    virtual void adopt(const Job& job) = 0;
    // Asks it to undo and leave.
    virtual void cancel(uint32_t job) = 0;
    // daemon-reload: which units have a gate depends on the state of images. With `at_shutdown` the unit that
    // takes others to disk when the system goes down is started then.
    virtual void reload_units(bool at_shutdown) = 0;
};

// Work on files that may take long or that reads what is not trusted: done by a helper process.
class Helpers {
  public:
    using Done = std::function<void(Result<std::string>)>;
    virtual ~Helpers() = default;
    // Undoes what the dead job of this directory left behind.
    virtual void recover(const std::string& job_dir, Done done) = 0;
    // The plan of an image as text.
    virtual void explain(const std::string& image_id, Done done) = 0;
    virtual void remove_image(const std::string& image_id, Done done) = 0;
    // Whether a unit can be restored when it starts; the answer is empty, or the reasons why not.
    virtual void check_enable(const std::string& unit, Done done) = 0;
};

// Told of everything that the bus shows. Called in order: new, changed*, removed, forgotten.
class JobObserver {
  public:
    virtual ~JobObserver() = default;
    virtual void job_new(const Job& job) = 0;
    virtual void job_changed(const Job& job, const std::vector<std::string>& properties) = 0;
    virtual void job_removed(const Job& job) = 0;
    virtual void job_forgotten(const Job& job) = 0;
};

struct ManagerConfig {
    std::string run_dir = "/run/checkpointd";
    std::string store_dir = "/var/lib/checkpointd";
    std::string vendor_policy_dir = kVendorPolicyDir;
    std::string admin_policy_dir = kAdminPolicyDir;
    Microseconds reload_delay = std::chrono::seconds(2);  // several jobs end together at boot
    Microseconds linger = std::chrono::seconds(60);  // how long a finished job stays readable

    std::string jobs_dir() const { return run_dir + "/jobs"; }
    std::string channel() const { return run_dir + "/worker.sock"; }
    std::string armed_dir() const { return admin_policy_dir + "/armed.d"; }
    std::string fault_flag() const { return run_dir + "/allow-faults"; }
};

class Manager {
  public:
    Manager(ManagerConfig config, EventLoop& loop, WorkerControl& workers, Helpers& helpers,
            ImageCatalog& images);
    Manager(const Manager&) = delete;
    Manager& operator=(const Manager&) = delete;

    // Told of each job that ended without its worker's own word, or that could not be undone.
    void on_death(std::function<void(const Job&)> death) { death_ = std::move(death); }
    // `observer` must outlive the manager, or be replaced by nullptr.
    void observe(JobObserver* observer) { observer_ = observer; }
    // Makes the run directory, loads the policy, adopts and recovers what an earlier daemon left.
    Result<void> start();
    // Called when nothing happened for the policy's idle timeout and no job runs.
    void on_idle(std::function<void()> idle) { idle_ = std::move(idle); }
    // Somebody used the daemon: the idle time starts anew.
    void touch();

    Result<const Job*> checkpoint(const std::string& unit, const CheckpointOptions& options,
                                  uid_t caller);
    Result<const Job*> restore(const std::string& target, const RestoreOptions& options, uid_t caller);
    // PID 1 has begun to start `unit`, which waits at its gate: a restore of it, if it is enabled or if a
    // client of its socket wakes it. Asked again it answers with the same job.
    Result<const Job*> revive(const std::string& unit, uid_t caller);
    void enable(const std::string& unit, Helpers::Done done);
    Result<void> disable(const std::string& unit);
    // By name.
    Result<std::vector<UnitSummary>> units();
    Result<void> cancel(uint32_t job);
    void explain(const std::string& image_id, Helpers::Done done);
    void remove_image(const std::string& image_id, const RemoveOptions& options, Helpers::Done done);
    // Whether x-fault is an option on this host.
    bool faults_allowed() const;

    // A datagram from the worker of `message.job`.
    void progress(const ProgressMessage& message);

    Result<void> reload_policy();
    const Policy& policy() const { return policy_; }
    ImageCatalog& images() { return images_; }
    // By id, oldest first.
    std::vector<const Job*> jobs() const;
    const Job* find(uint32_t job) const;
    unsigned running() const;

  private:
    Result<const Job*> submit(JobRequest request);
    Result<void> may_revive(const std::string& unit, const ImageSummary& image) const;
    std::string how_enabled(const std::string& unit) const;
    void reload_later();
    Result<void> refuse_conflict(const std::string& unit) const;
    Result<void> make_run_dir();
    Result<ImageSummary> find_image(const std::string& target);
    Result<void> adopt_all();
    void adopt(uint32_t id);
    void worker_gone(uint32_t id, std::optional<Error> error);
    void settle(uint32_t id, std::optional<Error> error);
    void recovered(uint32_t id, JobResult result, const Result<std::string>& recovery);
    void finish(Job& job, JobResult result);
    void forget(uint32_t id);
    void changed(const Job& job, const std::vector<std::string>& properties);

    ManagerConfig config_;
    EventLoop& loop_;
    WorkerControl& workers_;
    Helpers& helpers_;
    ImageCatalog& images_;
    JobObserver* observer_ = nullptr;
    std::function<void()> idle_;
    std::function<void(const Job&)> death_;
    EventLoop::TimerId idle_timer_ = 0;
    EventLoop::TimerId reload_timer_ = 0;
    ArmedUnits armed_;
    Policy policy_;
    std::map<uint32_t, std::unique_ptr<Job>> jobs_;
    uint32_t next_id_ = 1;
};

}  // namespace checkpointd
