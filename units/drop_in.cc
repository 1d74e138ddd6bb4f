// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/drop_in.h"

#include <algorithm>
#include <array>

namespace checkpointd {
namespace {

constexpr std::array<std::string_view, 11> kSuffixes = {
    ".service", ".socket", ".device", ".mount", ".automount", ".swap",
    ".target",  ".path",   ".timer",  ".slice", ".scope"};
constexpr size_t kMaxUnitName = 255;

std::string quote(std::string_view word, bool expanded) {
    std::string out = "\"";
    for (unsigned char byte : word) {
        if (byte < 0x20 || byte >= 0x7f)
            out += fmt::format("\\x{:02x}", byte);
        else if (byte == '"' || byte == '\\')
            out += {'\\', static_cast<char>(byte)};
        else if (byte == '%' || (expanded && byte == '$'))
            out += std::string(2, static_cast<char>(byte));
        else
            out += static_cast<char>(byte);
    }
    return out + '"';
}

bool is_unit_name_byte(unsigned char byte) {
    return (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') ||
           (byte >= '0' && byte <= '9') || std::string_view(":-_.\\@").find(static_cast<char>(byte)) !=
                                               std::string_view::npos;
}

}  // namespace

std::string quote_word(std::string_view word) {
    return quote(word, false);
}

std::string quote_literal_word(std::string_view word) {
    return quote(word, true);
}

Result<std::string> escape_value(std::string_view value) {
    std::string out;
    for (unsigned char byte : value) {
        if (byte < 0x20 || byte == 0x7f)
            return fail(ErrorKind::kBadInput, "unit setting",
                        fmt::format("a control character (0x{:02x}) has no place in it", byte));
        out += static_cast<char>(byte);
        if (byte == '%')
            out += '%';
    }
    // A trailing backslash would glue the next line to this one.
    if (out.ends_with('\\'))
        return fail(ErrorKind::kBadInput, "unit setting", "it may not end in a backslash");
    return out;
}

void DropIn::section(std::string_view name) {
    body_ += fmt::format("\n[{}]\n", name);
}

void DropIn::set(std::string_view key, std::string_view raw) {
    body_ += fmt::format("{}={}\n", key, raw);
}

void DropIn::set_quiet_end() {
    set("Restart", "no");
    set("RestartForceExitStatus", "");
    set("SuccessExitStatus", "SIGKILL");
    set("KillSignal", "SIGKILL");
    set("KillMode", "control-group");
    set("SendSIGHUP", "no");
    set("ExecStop", "");
    set("ExecStopPost", "");
    set("NotifyAccess", "all");
}

void DropIn::include(std::string_view text) {
    if (!text.empty())
        body_ += fmt::format("\n{}\n", text);
}

void DropIn::set_bare_start() {
    set("Restart", "no");
    set("RestartForceExitStatus", "");
    set("ExecStop", "");
    set("ExecStopPost", "");
    set("NotifyAccess", "all");
}

std::string DropIn::text() const {
    return fmt::format("# {}\n{}", why_, body_);
}

std::string drop_in_path(std::string_view unit_dir, std::string_view unit) {
    return fmt::format("{}/{}.d/{}", unit_dir, unit, kDropInName);
}

bool is_valid_unit_name(std::string_view name) {
    if (name.size() > kMaxUnitName || !std::all_of(name.begin(), name.end(), is_unit_name_byte))
        return false;
    return std::any_of(kSuffixes.begin(), kSuffixes.end(), [name](std::string_view suffix) {
        return name.ends_with(suffix) && name.size() > suffix.size() && name[0] != '@';
    });
}

}  // namespace checkpointd
