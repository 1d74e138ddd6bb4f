// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/checkpoint/held_devices.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "plugins/host/deadline.h"

namespace checkpointd {
namespace {

// Nobody's policy says when to give up on this: what is left then is undone from the journal. A plugin may have written
// down there that it takes longer.
constexpr std::chrono::minutes kResumeTime{5};

class ForestThreads : public ThreadControl {
  public:
    ForestThreads(SeizedForest& forest, Journal* journal) : forest_(forest), journal_(journal) {}
    int run(pid_t pid, pid_t tid) override { return errno_of(forest_.let_run(pid, tid, journal_)); }
    int hold(pid_t pid, pid_t tid, std::chrono::steady_clock::time_point deadline) override {
        return errno_of(forest_.stop_again(pid, tid, deadline));
    }

  private:
    SeizedForest& forest_;
    Journal* journal_;
};

}  // namespace

Result<HeldDevices> HeldDevices::quiesce(Plugins& plugins, Steps& steps, const std::vector<pid_t>& pids,
                                         Deadline deadline) {
    HeldDevices devices(plugins, steps);
    devices.first_ = pids;
    CKPT_TRY(plugins.quiesce(pids, deadline));
    return devices;
}

HeldDevices::HeldDevices(HeldDevices&& other) noexcept
    : plugins_(std::exchange(other.plugins_, nullptr)), steps_(other.steps_), forest_(other.forest_),
      first_(std::move(other.first_)) {}

HeldDevices::~HeldDevices() {
    (void)resume();  // what fails stays in the journal
}

std::vector<pid_t> HeldDevices::pids() const {
    if (forest_ == nullptr)
        return first_;
    std::vector<pid_t> pids;
    for (const SeizedProcess& process : forest_->processes())
        if (!process.zombie)
            pids.push_back(process.pid);
    return pids;
}

Result<void> HeldDevices::prepare(Deadline deadline) {
    if (plugins_ == nullptr)
        return {};
    ForestThreads threads(*forest_, plugins_->journal());
    CKPT_TRY(plugins_->prepare(pids(), &threads, deadline));
    return forest_->check_threads();  // on the way back nobody minds: there is nothing to dump any more
}

Result<void> HeldDevices::resume() {
    Plugins* plugins = std::exchange(plugins_, nullptr);
    if (plugins == nullptr)
        return {};
    const auto most = std::max<std::chrono::microseconds>(kResumeTime, plugins->undo_time());
    const auto deadline = deadline_in(most);
    steps_->giving_back(most);
    if (forest_ == nullptr)
        return plugins->resume(pids(), nullptr, deadline);
    ForestThreads threads(*forest_, plugins->journal());
    return plugins->resume(pids(), &threads, deadline);
}

void HeldDevices::abandon() {
    if (Plugins* plugins = std::exchange(plugins_, nullptr))
        plugins->abandon();
}

}  // namespace checkpointd
