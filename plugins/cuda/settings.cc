// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/settings.h"

#include <charconv>
#include <sstream>

namespace checkpointd::cuda {

const char* const kSettingNames[] = {"backend",    "command",      "lock-timeout", "checkpoint-timeout",
                                     "on-timeout", "check-memory", "device-map",   "storage",
                                     nullptr};

namespace {

constexpr size_t kUuidText = 40;  // with "GPU-"

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
    reader.take("storage", settings.storage, parse_storage);
    reader.take("device-map", settings.device_map, parse_device_map);
    CKPT_TRY(reader.finish());
    return settings;
}

std::string to_string(const Uuid& uuid) {
    std::string text = "GPU-";
    for (size_t i = 0; i < sizeof(uuid.bytes); ++i) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            text += '-';
        text += fmt::format("{:02x}", uuid.bytes[i]);
    }
    return text;
}

Result<Uuid> parse_uuid(const std::string& text) {
    Uuid uuid{};
    std::string digits;
    for (char c : text.starts_with("GPU-") ? text.substr(4) : text)
        if (c != '-')
            digits += c;
    bool good = text.size() == kUuidText && digits.size() == 2 * sizeof(uuid.bytes);
    for (size_t i = 0; good && i < sizeof(uuid.bytes); ++i) {
        const char* at = digits.data() + 2 * i;
        good = std::from_chars(at, at + 2, uuid.bytes[i], 16).ptr == at + 2;
    }
    if (!good)
        return fail(ErrorKind::kBadInput, fmt::format("'{}'", text), "is no UUID of a device");
    return uuid;
}

}  // namespace checkpointd::cuda
