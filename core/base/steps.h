// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <chrono>
#include <cstdint>
#include <string_view>

#include "core/base/error.h"

namespace checkpointd {

// Who watches a job while it works. Every step of a checkpoint or restore announces itself *before* it
// changes anything; the watcher may refuse. That one door serves progress display, cancellation,
// deadlines and fault injection, so the engine knows none of them.
class Steps {
  public:
    virtual ~Steps() = default;

    // `step` is a stable dotted name ("checkpoint.freeze", "restore.fork"). An error ends the job at this
    // step exactly as a failing system call would, with all undo that this implies.
    virtual Result<void> enter(std::string_view step) = 0;

    // Bytes of memory moved so far, of `total`. May be called from any thread, at most every few ms.
    virtual void moved(uint64_t done, uint64_t total) {
        (void)done;
        (void)total;
    }

    // By when the step that was entered last must be over: whoever takes longer is ended. Any thread.
    virtual std::chrono::steady_clock::time_point deadline() const { return std::chrono::steady_clock::time_point::max(); }

    // What the job took from the tasks is given back from now on until the next step is entered, and that may
    // take so long, whatever deadline the step before had: cut short it would leave them worse off.
    virtual void giving_back(std::chrono::microseconds most) { (void)most; }
};

// Watches nothing and refuses nothing.
class SilentSteps : public Steps {
  public:
    Result<void> enter(std::string_view) override { return {}; }
};

}  // namespace checkpointd
