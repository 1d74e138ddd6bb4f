// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/settings.h"

#include <charconv>
#include <sstream>

#include "config/policy/duration.h"

namespace checkpointd::cuda {

const char* const kSettingNames[] = {"backend",    "command",      "lock-timeout", "checkpoint-timeout",
                                     "on-timeout", "check-memory", "device-map",   "storage",
                                     nullptr};

namespace {

constexpr size_t kUuidText = 40;  // with "GPU-"

tl::unexpected<Error> wrong(const char* name, const std::string& value, std::string allowed) {
    return fail(ErrorKind::kBadInput, fmt::format("plugins.cuda.{}", name), fmt::format("cannot be '{}'", value),
                std::move(allowed));
}

Result<bool> choose(const char* name, const std::string& value, const std::string& yes, const std::string& no) {
    if (value == yes || value == no)
        return value == yes;
    return wrong(name, value, fmt::format("allowed: {}, {}", yes, no));
}

Result<std::chrono::milliseconds> parse_span(const char* name, const std::string& value) {
    auto span = parse_duration(value);
    if (!span || *span <= Microseconds(0) || *span > std::chrono::hours(24 * 7))
        return wrong(name, value, "write it as in \"5min 20s\", up to a week");
    return std::chrono::ceil<std::chrono::milliseconds>(*span);
}

Result<OnTimeout> parse_on_timeout(const char* name, const std::string& value) {
    if (value == "resume")
        return OnTimeout::kResume;
    if (value == "kill")
        return OnTimeout::kKill;
    if (value == "leave")
        return OnTimeout::kLeave;
    return wrong(name, value, "allowed: resume, kill, leave");
}

Result<StorageWanted> parse_storage(const char* name, const std::string& value) {
    if (value == "auto")
        return StorageWanted::kAuto;
    if (value == "host")
        return StorageWanted::kHost;
    if (value == "custom")
        return StorageWanted::kCustom;
    return wrong(name, value, "allowed: auto, custom, host");
}

Result<std::vector<GpuPair>> parse_device_map(const char* name, const std::string& value) {
    std::vector<GpuPair> pairs;
    std::stringstream all(value);
    for (std::string one; std::getline(all, one, ',');) {
        const size_t middle = one.find('=');
        auto from = parse_uuid(one.substr(0, middle));
        auto to = parse_uuid(middle == std::string::npos ? std::string() : one.substr(middle + 1));
        if (!from || !to)
            return wrong(name, one, "write it as GPU-OLD=GPU-NEW,...; nvidia-smi -L lists what is here");
        pairs.push_back({*from, *to});
    }
    return pairs;
}

}  // namespace

Result<Settings> Settings::read(const std::function<const char*(const char*)>& get) {
    Settings settings;
    std::vector<Error> errors;
    auto take = [&](const char* name, auto& out, auto&& parse) {
        const char* text = get(name);
        if (text == nullptr)
            return;
        auto value = parse(name, std::string(text));
        if (value)
            out = std::move(*value);
        else
            errors.push_back(std::move(value).error());
    };
    take("backend", settings.by_command,
         [](const char* name, const std::string& value) { return choose(name, value, "command", "driver-api"); });
    take("command", settings.command, [](const char*, const std::string& value) { return Result<std::string>(value); });
    take("lock-timeout", settings.lock_timeout, parse_span);
    take("checkpoint-timeout", settings.checkpoint_timeout, parse_span);
    take("on-timeout", settings.on_timeout, parse_on_timeout);
    take("check-memory", settings.checks_memory,
         [](const char* name, const std::string& value) { return choose(name, value, "yes", "no"); });
    take("storage", settings.storage, parse_storage);
    take("device-map", settings.device_map, parse_device_map);
    if (errors.size() == 1)
        return tl::unexpected(std::move(errors.front()));
    CKPT_TRY(all_blockers("plugins.cuda", "has settings that cannot be right", std::move(errors)));
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
