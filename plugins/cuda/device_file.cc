// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/device_file.h"

#include <algorithm>
#include <cerrno>
#include <unistd.h>

#include "core/kernel/proc_status.h"
#include "core/transaction/undo_kinds.h"
#include "plugins/cuda/devices.h"
#include "plugins/cuda/kept_file.h"
#include "plugins/cuda/storage_image.h"

namespace checkpointd::cuda {
namespace {

// By the PID that it has for itself, as in all of an image.
Result<std::string> name_of(pid_t pid) {
    CKPT_ASSIGN(const ProcStatus status, read_status(pid));
    return storage_image_name(status.ns_pids.empty() ? pid : status.ns_pids.back());
}

}  // namespace

Result<DeviceFile> DeviceFile::create(const ckptd_host& host, pid_t pid, std::vector<Region> regions) {
    DeviceFile made;
    place_regions(regions);
    made.regions_ = std::move(regions);
    CKPT_ASSIGN(made.name_, name_of(pid));
    made.file_.reset(host.open_image(host.context, made.name_.c_str()));
    if (!made.file_)
        return fail_errno(made.name_, "cannot be made");
    CKPT_ASSIGN(const uint64_t start, process_start_time(pid));
    CKPT_ASSIGN(made.kept_, keep_file(made.file_.get(), pid, start));
    return made;
}

Result<std::optional<DeviceFile>> DeviceFile::open(const ckptd_host& host, pid_t pid,
                                                   const std::vector<GpuPair>& device_map) {
    DeviceFile found;
    CKPT_ASSIGN(found.name_, name_of(pid));
    found.file_.reset(host.open_image(host.context, found.name_.c_str()));
    if (!found.file_ && errno == ENOENT)
        return std::nullopt;
    if (!found.file_)
        return fail_errno(found.name_, "cannot be read");
    CKPT_ASSIGN(found.regions_, read_storage_header(found.file_.get(), found.name_));
    for (Region& region : found.regions_)
        region.uuid = device_for(region.uuid, device_map);
    found.is_whole_ = true;
    return found;
}

Result<void> DeviceFile::end() {
    const std::string header = storage_header(regions_);
    alignas(kStorageHeader) char page[kStorageHeader] = {};  // the file may be one that goes past the page cache
    std::copy(header.begin(), header.end(), page);
    if (pwrite(file_.get(), page, sizeof(page), 0) != static_cast<ssize_t>(sizeof(page)))
        return fail_errno(name_, "cannot be written");
    is_whole_ = true;
    return {};
}

Result<void> DeviceFile::sync() const {
    return fdatasync(file_.get()) == 0 ? Result<void>() : fail_errno(name_, "cannot be written");
}

}  // namespace checkpointd::cuda
