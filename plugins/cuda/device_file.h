// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <optional>
#include <string>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "plugins/cuda/process.h"
#include "plugins/plugin.h"

namespace checkpointd::cuda {

// The file of an image that has one process's device memory. Its name says whose it is, so that a restore finds it.
class DeviceFile {
  public:
    // Of a checkpoint: a new one, with a second name (kept_file.h).
    static Result<DeviceFile> create(const ckptd_host& host, pid_t pid, std::vector<Region> regions);
    // Of a restore, for the devices that take the place of those it names; none where the image has none.
    static Result<std::optional<DeviceFile>> open(const ckptd_host& host, pid_t pid, const std::vector<GpuPair>& device_map);

    const std::string& name() const { return name_; }
    const std::string& kept() const { return kept_; }
    // Borrowed from this.
    Image image() const { return {file_.get(), regions_}; }
    // All of it is there, or in memory of the helper, and it has its header.
    bool is_whole() const { return is_whole_; }
    // Gives it its header, which nothing has that is not whole.
    Result<void> end();
    Result<void> sync() const;

  private:
    DeviceFile() = default;

    std::string name_;
    std::string kept_;
    ScopedFd file_;
    std::vector<Region> regions_;
    bool is_whole_ = false;
};

}  // namespace checkpointd::cuda
