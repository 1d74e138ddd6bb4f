// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <mutex>
#include <set>
#include <vector>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "plugins/cuda/message.h"

namespace checkpointd::cuda {

// Where the bytes of a process's device memory are while the device does not have them: in a file and, what did not get
// there, in memory of this process. Pieces are written and read as wholes, by any thread.
class DeviceStore {
  public:
    // Without a file (-1) all is in memory.
    DeviceStore(ScopedFd file, std::vector<Region> regions);

    const std::vector<Region>& regions() const { return regions_; }
    uint64_t bytes() const { return size_of(regions_); }

    // The buffer has room up to the next multiple of kAlignment, which is overwritten.
    Result<void> write(uint64_t at, void* data, size_t size);
    Result<void> read(uint64_t at, void* data, size_t size) const;
    bool has(uint64_t at) const;
    // What is written from now on stays in memory.
    void overflow() { overflows_ = true; }

    static constexpr size_t kAlignment = 4096;
    static constexpr uint64_t aligned(uint64_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

  private:
    Result<void> make_memory();

    ScopedFd file_;
    ScopedFd memory_;
    bool overflows_ = false;
    std::vector<Region> regions_;
    mutable std::mutex mutex_;
    std::set<uint64_t> written_;
    std::set<uint64_t> in_memory_;
};

}  // namespace checkpointd::cuda
