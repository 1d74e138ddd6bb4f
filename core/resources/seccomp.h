// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <map>
#include <string>
#include <utility>

#include "core/base/error.h"
#include "core/inject/seize.h"
#include "images/proto/core.pb.h"
#include "images/proto/security.pb.h"

namespace checkpointd {

// Collects the filters of all threads. Chains that begin alike share their records, as forked tasks
// share them in the kernel.
class SeccompCollector {
  public:
    Result<void> dump(const SeizedThread& thread, images::thread_core_entry& out);
    const images::seccomp_entry& image() const { return image_; }

  private:
    using Key = std::pair<int64_t, std::string>;  // index of the filter before, flags and code
    uint32_t add(int64_t previous, uint64_t flags, std::string code);

    images::seccomp_entry image_;
    std::map<Key, uint32_t> known_;
};

}  // namespace checkpointd
