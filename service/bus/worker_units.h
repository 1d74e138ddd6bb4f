// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>

#include "core/base/scoped_fd.h"
#include "dbus/compat.h"
#include "service/event_loop.h"
#include "service/manager.h"

namespace checkpointd {

// Workers as transient units of PID 1 (checkpointd-job-N.service): not our children, because restored
// main processes must become children of PID 1, must not inherit our cgroup or sandbox, and must not end
// with us. All calls are asynchronous; a worker's end is seen through a pidfd.
class WorkerUnits : public WorkerControl {
  public:
    // `program` is the worker's binary.
    WorkerUnits(bus::Connection& connection, EventLoop& loop, std::string program);
    ~WorkerUnits() override;

    void on_gone(Gone gone) override { gone_ = std::move(gone); }
    void start(const Job& job) override;
    void adopt(const Job& job) override;
    void cancel(uint32_t job) override;
    void reload_units(bool at_shutdown) override;

  private:
    using Property = sdbus::Struct<std::string, sdbus::Variant>;

    std::vector<Property> properties(const Job& job) const;
    // The start job of PID 1 has ended.
    void start_ended(const std::string& unit, const std::string& result);
    void look_up(uint32_t job);
    void found_pid(uint32_t job, uint32_t pid);
    void report_gone(uint32_t job, std::optional<Error> error);
    // Calls back from the loop, outside of any bus callback.
    void report_later(uint32_t job, std::optional<Error> error);

    EventLoop& loop_;
    bus::Connection& connection_;
    std::string program_;
    std::unique_ptr<sdbus::IProxy> systemd_;
    Gone gone_;
    std::map<std::string, uint32_t> starting_;                       // by unit name
    std::map<uint32_t, std::unique_ptr<sdbus::IProxy>> lookups_;     // units asked for their main PID
    std::map<uint32_t, ScopedFd> running_;                           // pidfds
};

}  // namespace checkpointd
