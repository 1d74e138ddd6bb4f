// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/restore_preflight.h"

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <optional>

#include "core/base/io.h"
#include "plugins/cuda/device_map.h"
#include "plugins/cuda/devices.h"
#include "plugins/cuda/devices_image.h"
#include "plugins/cuda/preflight.h"
#include "plugins/cuda/storage_image.h"

namespace checkpointd::cuda {
namespace {

// None in an image of CRIU's, which keeps no such list.
Result<std::optional<WantedDevices>> read_wanted(const ckptd_host& host) {
    ScopedFd file(host.open_image(host.context, kDevicesImage));
    if (!file && errno == ENOENT)
        return std::nullopt;
    if (!file)
        return fail_errno(kDevicesImage, "cannot be read");
    CKPT_ASSIGN(const std::string text, read_fd(file.get(), kDevicesImage, 1 << 20));
    CKPT_ASSIGN(auto wanted, parse_devices(text));
    return wanted;
}

// One restore's: what comes out of it, and all that is in its way.
class Check {
  public:
    Check(const Settings& settings, const ckptd_host& host) : settings_(settings), host_(host) {}

    void with(const WantedDevices& wanted, const Answer& here);
    // Of what may be wrong, without a driver that can be asked.
    void note(Error error) { blockers_.push_back(std::move(error)); }
    void open_storages(const WantedDevices& wanted);
    // As the policy has them, where the image does not say which devices there were.
    void take_map(std::vector<GpuPair> pairs, const Answer& here);
    Result<RestoreFacts> finish() &&;

  private:
    void note(std::vector<Error> more) { std::move(more.begin(), more.end(), std::back_inserter(blockers_)); }
    Result<void> open_storage(const std::string& name);

    const Settings& settings_;
    const ckptd_host& host_;
    RestoreFacts facts_;
    std::vector<Error> blockers_;
};

Result<void> Check::open_storage(const std::string& name) {
    ScopedFd file(host_.open_image(host_.context, name.c_str()));
    if (!file)
        return fail_errno(name, "cannot be read");
    CKPT_TRY(read_storage_header(file.get(), name));
    facts_.storages.push_back(std::move(file));
    return {};
}

void Check::open_storages(const WantedDevices& wanted) {
    facts_.processes = wanted.processes;
    for (const std::string& name : wanted.storages)
        if (auto opened = open_storage(name); !opened)
            note(std::move(opened).error());
}

void Check::take_map(std::vector<GpuPair> pairs, const Answer& here) {
    if (!pairs.empty() && here.value < kPairsVersion)
        note({ErrorKind::kUnsupported, "CUDA driver",
              fmt::format("is of CUDA {}, and puts nothing on another device, as device-map wants it", version_text(here)),
              "install a driver of version 580 (CUDA 13.0) or newer, or restore on the devices of the image", 0, {}});
    facts_.pairs = std::move(pairs);
}

void Check::with(const WantedDevices& wanted, const Answer& here) {
    if (!wanted.storages.empty() && here.offers_storage == 0)
        note({ErrorKind::kUnsupported, "CUDA driver",
              fmt::format("is of CUDA {}, and takes device memory from nobody, as this image needs", version_text(here)),
              "install a driver of version 615 or newer, and set backend: driver-api", 0, {}});
    if (wanted.devices.empty())
        return take_map(settings_.device_map, here);
    CompleteMap map = complete_map(wanted.devices, settings_.device_map, here);
    note(std::move(map.blockers));
    take_map(std::move(map.pairs), here);
    if (here.device_count > 0)  // else nobody told
        note(find_missing(wanted.devices, here, facts_.pairs, settings_.checks_memory));
    else if (!blockers_.empty())
        note(about(here, blockers_.front().kind));
}

Result<RestoreFacts> Check::finish() && {
    if (blockers_.size() == 1)
        return tl::unexpected(std::move(blockers_.front()));
    CKPT_TRY(all_blockers("CUDA", "what the image needs is not here", std::move(blockers_)));
    return std::move(facts_);
}

}  // namespace

Result<RestoreFacts> check_restore(Backend& backend, const Settings& settings, const ckptd_host& host,
                                   Backend::Deadline deadline) {
    CKPT_ASSIGN(const auto wanted, read_wanted(host));
    if (!wanted && settings.device_map.empty())
        return RestoreFacts();
    Check check(settings, host);
    if (wanted)
        check.open_storages(*wanted);
    for (Error& instance : find_instances())
        check.note(std::move(instance));
    auto here = ask_devices(backend, deadline);
    if (!here)
        check.note(std::move(here).error());
    else if (wanted)
        check.with(*wanted, *here);
    else
        check.take_map(settings.device_map, *here);
    return std::move(check).finish();
}

}  // namespace checkpointd::cuda
