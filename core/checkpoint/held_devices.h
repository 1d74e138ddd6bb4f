// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <chrono>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"
#include "core/base/steps.h"
#include "core/inject/seize.h"
#include "plugins/host/plugins.h"

namespace checkpointd {

// Devices that plugins keep from the tasks of a dump. Whatever happens they are given back by the end of this
// object: before the tasks go on where these stand, at once where they could not be stopped.
class HeldDevices {
  public:
    using Deadline = Plugins::Deadline;

    // Nothing to hold.
    HeldDevices() = default;
    // The tasks run yet. `plugins` is borrowed, and so is `steps`, which hears when all is given back.
    static Result<HeldDevices> quiesce(Plugins& plugins, Steps& steps, const std::vector<pid_t>& pids,
                                       Deadline deadline);
    HeldDevices(HeldDevices&& other) noexcept;
    HeldDevices& operator=(HeldDevices&&) = delete;
    ~HeldDevices();

    // The tasks stand from now on, in `forest`, which is borrowed until it is replaced or this ends.
    void standing(SeizedForest& forest) { forest_ = &forest; }
    Result<void> prepare(Deadline deadline);
    Result<void> resume();
    // The tasks end, and their devices with them.
    void abandon();

  private:
    HeldDevices(Plugins& plugins, Steps& steps) : plugins_(&plugins), steps_(&steps) {}
    std::vector<pid_t> pids() const;

    Plugins* plugins_ = nullptr;
    Steps* steps_ = nullptr;
    SeizedForest* forest_ = nullptr;
    std::vector<pid_t> first_;  // before they stood
};

}  // namespace checkpointd
