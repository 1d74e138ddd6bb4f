// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/restore_preflight.h"

#include <cerrno>

#include "core/base/io.h"
#include "plugins/cuda/devices.h"
#include "plugins/cuda/devices_image.h"
#include "plugins/cuda/storage_image.h"

namespace checkpointd::cuda {
namespace {

Result<std::vector<ScopedFd>> open_storages(const WantedDevices& wanted, const Answer& here, const ckptd_host& host) {
    std::vector<ScopedFd> files;
    if (!wanted.storages.empty() && here.offers_storage == 0)
        return fail(ErrorKind::kUnsupported, "CUDA driver",
                    fmt::format("is of CUDA {}, and takes device memory from nobody, as this image needs", version_text(here)),
                    "install a driver of version 615 or newer, and set backend: driver-api");
    for (const std::string& name : wanted.storages) {
        ScopedFd file(host.open_image(host.context, name.c_str()));
        if (!file)
            return fail_errno(name, "cannot be read");
        CKPT_TRY(read_storage_header(file.get(), name));
        files.push_back(std::move(file));
    }
    return files;
}

}  // namespace

Result<RestoreFacts> check_restore(Backend& backend, const Settings& settings, const ckptd_host& host,
                                   Backend::Deadline deadline) {
    RestoreFacts facts;
    ScopedFd file(host.open_image(host.context, kDevicesImage));
    if (!file && errno == ENOENT)
        return facts;  // of CRIU, which keeps no such list
    if (!file)
        return fail_errno(kDevicesImage, "cannot be read");
    CKPT_ASSIGN(const std::string text, read_fd(file.get(), kDevicesImage, 1 << 20));
    CKPT_ASSIGN(const auto wanted, parse_devices(text));
    facts.processes = wanted.processes;
    CKPT_ASSIGN(const Answer here, ask_devices(backend, deadline));
    CKPT_ASSIGN(facts.storages, open_storages(wanted, here, host));
    if (!settings.by_command)  // which does not tell which devices there are
        CKPT_TRY(check_devices(wanted.devices, here, settings.device_map, settings.checks_memory));
    return facts;
}

}  // namespace checkpointd::cuda
