// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/devices.h"

#include <algorithm>

namespace checkpointd::cuda {

Result<Answer> ask_devices(Backend& backend, Backend::Deadline deadline) {
    Request request;
    request.operation = Operation::kMemory;
    CKPT_ASSIGN(Answer answer, backend.ask(request, soon(deadline)));
    if (answer.code == kSuccess && answer.value >= kBaseVersion)
        return answer;
    const std::string why = answer.code == kSuccess ? fmt::format("it is of CUDA {}", version_text(answer)) : answer.text;
    return fail(ErrorKind::kUnsupported, "CUDA driver", fmt::format("cannot checkpoint processes: {}", why),
                "install a driver of version 570 (CUDA 12.8) or newer");
}

uint64_t taken_bytes(const Answer& devices) {
    uint64_t taken = 0;
    for (uint32_t i = 0; i < devices.device_count; ++i)
        taken += devices.devices[i].total_bytes - devices.devices[i].free_bytes;
    return taken;
}

std::string version_text(const Answer& devices) {
    return fmt::format("{}.{}", devices.value / 1000, devices.value % 1000 / 10);
}

// No driver that can be asked is without a device: only the command tells of none.
Error about(const Answer& devices, ErrorKind kind) {
    if (devices.device_count == 0)
        return {kind, "CUDA driver", "is asked by the command, and libnvidia-ml.so.1 does not tell of its devices: whether there "
                                     "is memory enough was not looked at", {}, 0, {}};
    return {kind, "CUDA driver", fmt::format("is of CUDA {} and has {} device{}", version_text(devices), devices.device_count,
                                             devices.device_count == 1 ? "" : "s"), {}, 0, {}};
}

const Device* find_device(const Answer& devices, const Uuid& uuid) {
    const Device* end = devices.devices + std::min(devices.device_count, kMaxDevices);
    const Device* found = std::find_if(devices.devices, end, [&](const Device& device) { return device.uuid == uuid; });
    return found == end ? nullptr : found;
}

Uuid device_for(const Uuid& uuid, const std::vector<GpuPair>& device_map) {
    const auto pair = std::find_if(device_map.begin(), device_map.end(), [&](const GpuPair& one) { return one.from == uuid; });
    return pair == device_map.end() ? uuid : pair->to;
}

}  // namespace checkpointd::cuda
