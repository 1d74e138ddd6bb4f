// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/settings.h"

#include <algorithm>
#include <sstream>

namespace checkpointd::cuda {

const char* const kSettingNames[] = {"backend",    "command",      "lock-timeout", "checkpoint-timeout",
                                     "on-timeout", "check-memory", "device-map",   "storage",
                                     "check-ipc",  nullptr};

namespace {

Result<OnTimeout> parse_on_timeout(const std::string& value) {
    if (value == "resume")
        return OnTimeout::kResume;
    if (value == "kill")
        return OnTimeout::kKill;
    if (value == "leave")
        return OnTimeout::kLeave;
    return fail(ErrorKind::kBadInput, value, "allowed: resume, kill, leave");
}

Result<StorageWanted> parse_storage(const std::string& value) {
    if (value == "auto")
        return StorageWanted::kAuto;
    if (value == "host")
        return StorageWanted::kHost;
    if (value == "custom")
        return StorageWanted::kCustom;
    return fail(ErrorKind::kBadInput, value, "allowed: auto, custom, host");
}

Result<std::vector<GpuPair>> parse_device_map(const std::string& value) {
    std::vector<GpuPair> pairs;
    std::stringstream all(value);
    for (std::string one; std::getline(all, one, ',');) {
        const size_t middle = one.find('=');
        auto from = parse_uuid(one.substr(0, middle));
        auto to = parse_uuid(middle == std::string::npos ? std::string() : one.substr(middle + 1));
        if (!from || !to)
            return fail(ErrorKind::kBadInput, one, "write it as GPU-OLD=GPU-NEW,...; nvidia-smi -L lists what is here");
        if (std::any_of(pairs.begin(), pairs.end(), [&](const GpuPair& pair) { return pair.from == *from; }))
            return fail(ErrorKind::kBadInput, to_string(*from), "it is named twice");
        pairs.push_back({*from, *to});
    }
    return pairs;
}

}  // namespace

Result<Settings> Settings::read(const SettingReader::Get& get) {
    Settings settings;
    SettingReader reader("cuda", get);
    reader.take_choice("backend", settings.by_command, "command", "driver-api");
    reader.take("command", settings.command, [](const std::string& value) { return Result<std::string>(value); });
    reader.take_span("lock-timeout", settings.lock_timeout, "5min 20s");
    reader.take_span("checkpoint-timeout", settings.checkpoint_timeout, "5min 20s");
    reader.take("on-timeout", settings.on_timeout, parse_on_timeout);
    reader.take_switch("check-memory", settings.checks_memory);
    reader.take_switch("check-ipc", settings.checks_ipc);
    reader.take("storage", settings.storage, parse_storage);
    reader.take("device-map", settings.device_map, parse_device_map);
    CKPT_TRY(reader.finish());
    return settings;
}

}  // namespace checkpointd::cuda
