// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/tell_section.h"

#include <fcntl.h>
#include <array>
#include <utility>

#include "core/base/io.h"

namespace checkpointd {
namespace {

constexpr std::string_view kSection = "[X-Checkpointd]";
constexpr std::string_view kBlank = " \t\r";

// The keys of a unit file and those of the policy.
constexpr std::array<std::pair<std::string_view, std::string_view>, 4> kKeys = {{
    {"TellBefore", "before"},
    {"TellAfter", "after"},
    {"TellSocket", "socket"},
    {"TellWhenSilent", "when-silent"},
}};

std::string_view trimmed(std::string_view text) {
    const size_t first = text.find_first_not_of(kBlank);
    return first == text.npos ? "" : text.substr(first, text.find_last_not_of(kBlank) - first + 1);
}

void take_back(TellSettings& settings, std::string_view key) {
    if (key == "before")
        settings.before.reset();
    else if (key == "after")
        settings.after.reset();
    else if (key == "socket")
        settings.socket.reset();
    else
        settings.goes_on_if_silent.reset();
}

Result<void> assign(TellSettings& settings, std::string_view key, std::string_view value,
                    const std::string& unit) {
    for (const auto& [name, policy_key] : kKeys) {
        if (name != key)
            continue;
        if (value.empty()) {
            take_back(settings, policy_key);
            return {};
        }
        CKPT_ASSIGN(const std::string text, expand_specifiers(value, unit));
        return settings.set(policy_key, text);
    }
    return fail(ErrorKind::kBadInput, fmt::format("key {}=", key),
                "is not known in [X-Checkpointd]",
                "known: TellAfter=, TellBefore=, TellSocket=, TellWhenSilent=");
}

Result<void> read_line(TellSettings& settings, std::string_view line, const std::string& unit) {
    const size_t equals = line.find('=');
    if (equals == line.npos)
        return fail(ErrorKind::kBadInput, fmt::format("\"{}\"", line), "is no setting",
                    "write KEY=VALUE");
    return assign(settings, trimmed(line.substr(0, equals)), trimmed(line.substr(equals + 1)),
                  unit);
}

}  // namespace

Result<std::string> expand_specifiers(std::string_view text, std::string_view unit) {
    const std::string_view name = unit.substr(0, unit.rfind('.'));
    const size_t at = name.find('@');
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '%') {
            out += text[i];
            continue;
        }
        switch (++i < text.size() ? text[i] : '\0') {
            case '%':
                out += '%';
                break;
            case 'n':
                out += unit;
                break;
            case 'p':
                out += name.substr(0, at);
                break;
            case 'i':
                out += at == name.npos ? std::string_view() : name.substr(at + 1);
                break;
            case 't':
                out += "/run";
                break;
            default:
                return fail(ErrorKind::kBadInput, fmt::format("\"{}\"", text),
                            "has an unknown specifier", "known here: %i %n %p %t %%");
        }
    }
    return out;
}

std::vector<Error> read_tell_section(std::string_view text, const std::string& file,
                                     const std::string& unit, TellSettings& settings) {
    std::vector<Error> errors;
    bool ours = false, continued = false;
    for (size_t number = 1; !text.empty(); ++number) {
        const size_t end = text.find('\n');
        std::string_view line = trimmed(text.substr(0, end));
        text.remove_prefix(end == text.npos ? text.size() : end + 1);
        const bool is_rest = std::exchange(continued, line.ends_with('\\'));
        if (is_rest || line.empty() || line.front() == '#' || line.front() == ';')
            continue;
        if (line.front() == '[')
            ours = line == kSection;
        else if (ours)
            if (auto read = read_line(settings, line, unit); !read)
                errors.push_back(std::move(read).error().wrap(fmt::format("{}:{}", file, number),
                                                              "cannot be understood"));
    }
    return errors;
}

Result<TellSettings> tell_settings_of(Systemd& systemd, const std::string& unit,
                                      Blockers& blockers) {
    CKPT_ASSIGN(auto paths, systemd.list(unit, "Unit", "DropInPaths"));
    CKPT_ASSIGN(std::string fragment, systemd.text(unit, "Unit", "FragmentPath"));
    paths.insert(paths.begin(), fragment);
    TellSettings settings;
    for (const std::string& path : paths) {
        auto text = read_file(AT_FDCWD, path);
        if (!text)
            continue;  // gone since the last daemon-reload
        for (Error& error : read_tell_section(*text, path, unit, settings))
            blockers.add(std::move(error));
    }
    return settings;
}

}  // namespace checkpointd
