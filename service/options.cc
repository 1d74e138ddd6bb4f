// SPDX-License-Identifier: LGPL-2.1-or-later
#include "service/options.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/ranges.h>

#include "core/base/io.h"

namespace checkpointd {
namespace {

Error mistake(const std::string& key, std::string message, std::string remedy = {}) {
    return Error{ErrorKind::kBadInput, "option \"" + key + "\"", std::move(message),
                 std::move(remedy), 0, {}};
}

std::optional<Microseconds> read_timeout(OptionReader& reader) {
    auto usec = reader.number("timeout");
    if (!usec) return std::nullopt;
    if (*usec == 0) reader.complain(mistake("timeout", "must be more than zero"));
    // D-Bus convention for "infinity" is the largest number.
    return *usec >= INT64_MAX ? kForever : Microseconds(static_cast<int64_t>(*usec));
}

std::optional<Fault> read_fault(OptionReader& reader, bool allowed) {
    auto text = reader.text("x-fault");
    if (!text) return std::nullopt;
    if (!allowed)
        reader.complain(Error{ErrorKind::kDenied, "option \"x-fault\"",
                              "fault injection is not allowed on this host",
                              "for tests only: root creates /run/checkpointd/allow-faults", 0, {}});
    auto fault = parse_fault(*text);
    if (fault) return *fault;
    reader.complain(std::move(fault).error());
    return std::nullopt;
}

bool allowed_in_name(unsigned char c) {
    return std::isalnum(c) || c == ':' || c == '-' || c == '_' || c == '.' || c == '\\' || c == '@';
}

constexpr std::array<std::string_view, 3> kModes{"snapshot", "stop", "suspend"};
constexpr std::array kOtherTypes{".socket", ".target", ".device", ".mount", ".automount", ".swap",
                                 ".timer",  ".path",   ".slice"};

}  // namespace

template <typename T>
std::optional<T> OptionReader::get(const std::string& key, const std::string& type) {
    known_.insert(key);
    auto found = options_.find(key);
    if (found == options_.end()) return std::nullopt;
    if (const T* value = std::get_if<T>(&found->second.value)) return *value;
    errors_.push_back(mistake(key, fmt::format("has type {}", found->second.type),
                              fmt::format("it must have type {}", type)));
    return std::nullopt;
}

Result<void> OptionReader::finish(const std::string& method) {
    for (const auto& [key, value] : options_)
        if (!known_.contains(key))
            errors_.push_back(mistake(
                key, "is not known",
                known_.empty() ? "there are none"
                               : fmt::format("known: {}", fmt::join(known_, ", "))));
    if (errors_.size() == 1) return tl::unexpected(std::move(errors_.front()));
    return all_blockers(method, "the options cannot be right", std::move(errors_));
}

Result<CheckpointOptions> parse_checkpoint_options(const Options& options, bool faults_allowed) {
    OptionReader reader(options);
    CheckpointOptions parsed;
    if (auto mode = reader.text("mode")) parsed.mode = *mode;
    if (std::find(kModes.begin(), kModes.end(), parsed.mode) == kModes.end())
        reader.complain(Error{ErrorKind::kUnsupported, "option \"mode\"",
                              "there is no mode \"" + parsed.mode + "\"",
                              fmt::format("known: {}", fmt::join(kModes, ", ")), 0, {}});
    parsed.sync = reader.flag("sync");
    parsed.timeout = read_timeout(reader);
    parsed.fault = read_fault(reader, faults_allowed);
    CKPT_TRY(reader.finish("CheckpointUnit"));
    return parsed;
}

Result<RestoreOptions> parse_restore_options(const Options& options, bool faults_allowed) {
    OptionReader reader(options);
    RestoreOptions parsed;
    parsed.timeout = read_timeout(reader);
    parsed.fault = read_fault(reader, faults_allowed);
    CKPT_TRY(reader.finish("RestoreUnit"));
    return parsed;
}

Result<RemoveOptions> parse_remove_options(const Options& options) {
    OptionReader reader(options);
    RemoveOptions parsed;
    if (auto force = reader.flag("force")) parsed.force = *force;
    CKPT_TRY(reader.finish("RemoveImage"));
    return parsed;
}

bool faults_allowed(const std::string& flag) {
    struct stat status {};
    return lstat(flag.c_str(), &status) == 0 && status.st_uid == geteuid();
}

std::optional<Fault> standing_fault(const std::string& flag) {
    if (!faults_allowed(flag)) return std::nullopt;
    auto text = read_file(AT_FDCWD, flag, 4096);
    if (!text) return std::nullopt;
    auto fault = parse_fault(text->substr(0, text->find('\n')));
    return fault ? std::optional(std::move(*fault)) : std::nullopt;
}

Result<std::string> normalise_unit(const std::string& name) {
    if (name.empty()) return fail(ErrorKind::kBadInput, "unit", "the name is empty");
    if (name.size() > 255 || !std::all_of(name.begin(), name.end(), allowed_in_name))
        return fail(ErrorKind::kBadInput, "unit \"" + name.substr(0, 255) + "\"",
                    "is not a unit name", "see systemd.unit(5); systemd-escape(1) makes names");
    if (name.ends_with(".service") || name.ends_with(".scope")) return name;
    for (const char* type : kOtherTypes)
        if (name.ends_with(type))
            return fail(ErrorKind::kUnsupported, name, "only services and scopes can be checkpointed");
    return name + ".service";
}

}  // namespace checkpointd
