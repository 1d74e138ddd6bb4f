// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/devices_image.h"

#include <algorithm>

#include "images/json.h"
#include "plugins/cuda/devices.h"

namespace checkpointd::cuda {
namespace {

uint64_t taken_off(const DevicesImage& image, const Device& before) {
    uint64_t bytes = 0;
    for (const Region& region : image.known)
        if (region.uuid == before.uuid)
            bytes += region.size;
    const Device* after = image.after ? find_device(*image.after, before.uuid) : nullptr;
    if (after != nullptr && after->free_bytes > before.free_bytes)
        bytes = std::max(bytes, after->free_bytes - before.free_bytes);
    return bytes;
}

}  // namespace

std::string to_json(const DevicesImage& image) {
    nlohmann::ordered_json json;
    json["version"] = 1;
    json["processes"] = image.processes;
    auto& devices = json["devices"] = nlohmann::ordered_json::array();
    for (uint32_t i = 0; i < image.before.device_count; ++i) {
        const Device& before = image.before.devices[i];
        devices.push_back({{"uuid", to_string(before.uuid)}, {"bytes", taken_off(image, before)}});
    }
    if (!image.storages.empty())
        json["storages"] = image.storages;
    return json.dump(1, '\t') + "\n";
}

Result<WantedDevices> parse_devices(const std::string& text) {
    CKPT_ASSIGN(const auto json, images::parse_json_object(text, kDevicesImage));
    CKPT_ASSIGN(const auto* list, images::json_array(json, "devices", kDevicesImage));
    WantedDevices wanted;
    CKPT_ASSIGN(wanted.processes, images::json_number(json, "processes", kDevicesImage));
    for (const auto& entry : *list) {
        CKPT_ASSIGN(const std::string uuid, images::json_string(entry, "uuid", kDevicesImage));
        WantedDevice device;
        CKPT_ASSIGN(device.uuid, parse_uuid(uuid));
        CKPT_ASSIGN(device.bytes, images::json_number(entry, "bytes", kDevicesImage));
        wanted.devices.push_back(device);
    }
    if (!json.contains("storages"))
        return wanted;  // all of it is in the memory of the processes
    CKPT_ASSIGN(const auto* files, images::json_array(json, "storages", kDevicesImage));
    for (const auto& name : *files) {
        if (!name.is_string())
            return fail(ErrorKind::kBadImage, kDevicesImage, "has a storage that is no name");
        wanted.storages.push_back(name.get<std::string>());
    }
    return wanted;
}

std::vector<Error> find_missing(const std::vector<WantedDevice>& wanted, const Answer& here, const std::vector<GpuPair>& map,
                                bool checks_memory) {
    std::vector<Error> missing;
    for (const WantedDevice& device : wanted) {
        if (device.bytes == 0)
            continue;  // it was there, and not used
        const Uuid uuid = device_for(device.uuid, map);
        const Device* found = find_device(here, uuid);
        if (found == nullptr)
            missing.push_back({ErrorKind::kUnsupported, to_string(uuid), "is not here",
                               "map it to a device of the same kind: plugins: {cuda: {device-map: GPU-OLD=GPU-NEW}}", 0, {}});
        else if (checks_memory && found->free_bytes < device.bytes)
            missing.push_back({ErrorKind::kConflict, to_string(uuid),
                               fmt::format("has {} MiB free of the {} MiB that the image needs", found->free_bytes >> 20,
                                           device.bytes >> 20),
                               "end what else uses the device, or set plugins: {cuda: {check-memory: no}} where the image says "
                               "too much: without the room, the restore fails", 0, {}});
    }
    return missing;
}

}  // namespace checkpointd::cuda
