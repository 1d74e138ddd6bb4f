// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A moment of a forest, held by forked copies while the forest goes on.
#pragma once

#include <sys/types.h>
#include <cstdint>
#include <map>
#include <vector>

#include "core/inject/forked_copy.h"
#include "core/inject/seize.h"

namespace checkpointd {

// A process that may get a copy.
struct CopyCandidate {
    SeizedProcess* process = nullptr;  // borrowed
    uint64_t bytes = 0;                // that the copy would hold for it
    bool is_subreaper = false;         // PR_GET_CHILD_SUBREAPER
};

// The copies end when this is destroyed. To be used by the thread that seized the forest.
class ForkedCopies {
  public:
    // Less than that is copied sooner than it is forked.
    static constexpr uint64_t kWorthForking = 2u << 20;

    // Parents before children. No copy gets whoever holds less than `from` bytes, who would see it
    // (subreapers and their descendants adopt it), and who cannot be forked. Nobody gets one where
    // the machine or a control group has no room for the same memory twice. All that is no error:
    // the memory can be read while its owner stands still.
    static ForkedCopies make(const std::vector<CopyCandidate>& candidates,
                             uint64_t from = kWorthForking);

    // Null where there is none.
    const ForkedCopy* of(pid_t pid) const;
    size_t size() const { return copies_.size(); }

    // Into our own control group, where nobody ends, counts or waits for them in the unit's name.
    // As far as that is possible.
    void leave_cgroup() const;

  private:
    std::map<pid_t, ForkedCopy> copies_;
};

}  // namespace checkpointd
