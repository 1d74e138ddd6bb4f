// SPDX-License-Identifier: LGPL-2.1-or-later
#include "config/policy/tell.h"

#include <sys/un.h>
#include <algorithm>
#include <csignal>
#include <cstring>

namespace checkpointd {
namespace {

// Those that sigaction(2) lets a program handle, and that are not the C library's own.
bool can_be_handled(int signal) {
    if (signal == SIGKILL || signal == SIGSTOP)
        return false;
    return (signal > 0 && signal <= SIGSYS) || (signal >= SIGRTMIN && signal <= SIGRTMAX);
}

bool is_path(const std::string& text) {
    return text.starts_with('/') && text.size() > 1 &&
           text.size() < sizeof(sockaddr_un::sun_path) &&
           std::none_of(text.begin(), text.end(),
                        [](unsigned char c) { return c < ' ' || c == 0x7f; });
}

tl::unexpected<Error> bad_value(std::string_view key, const std::string& value,
                                std::string remedy) {
    return fail(ErrorKind::kBadInput, std::string(key), fmt::format("cannot be \"{}\"", value),
                std::move(remedy));
}

Result<void> set_signal(std::optional<int>& into, const std::string& value) {
    CKPT_ASSIGN(into, parse_signal(value));
    return {};
}

Result<void> set_path(std::optional<std::string>& into, const std::string& value) {
    if (value != "none" && !is_path(value))
        return bad_value("socket", value,
                         "the absolute path of a socket, at most 107 bytes, or none");
    into = value == "none" ? "" : value;
    return {};
}

Result<void> set_choice(std::optional<bool>& into, const std::string& value) {
    if (value != "fail" && value != "go-on")
        return bad_value("when-silent", value, "fail or go-on");
    into = value == "go-on";
    return {};
}

}  // namespace

std::string signal_name(int signal) {
    if (signal == 0)
        return "none";
    if (signal >= SIGRTMIN)
        return fmt::format("SIGRTMIN+{}", signal - SIGRTMIN);
    return fmt::format("SIG{}", sigabbrev_np(signal));
}

Result<int> parse_signal(const std::string& text) {
    if (text == "none")
        return 0;
    for (int signal = 1; signal <= SIGRTMAX; ++signal)
        if (can_be_handled(signal) && signal_name(signal) == text)
            return signal;
    return fail(ErrorKind::kBadInput, fmt::format("\"{}\"", text),
                "is no signal that a program can handle", "as in SIGUSR1 or SIGRTMIN+3, or none");
}

Result<void> TellSettings::set(std::string_view key, const std::string& value) {
    if (key == "before")
        return set_signal(before, value);
    if (key == "after")
        return set_signal(after, value);
    if (key == "socket")
        return set_path(socket, value);
    if (key == "when-silent")
        return set_choice(goes_on_if_silent, value);
    return fail(ErrorKind::kBadInput, fmt::format("key \"{}\"", key), "is not known",
                "allowed: after, before, socket, when-silent");
}

std::map<std::string, std::string> TellSettings::values() const {
    std::map<std::string, std::string> values;
    if (before)
        values["before"] = signal_name(*before);
    if (after)
        values["after"] = signal_name(*after);
    if (socket)
        values["socket"] = socket->empty() ? "none" : *socket;
    if (goes_on_if_silent)
        values["when-silent"] = *goes_on_if_silent ? "go-on" : "fail";
    return values;
}

void TellSettings::lay_over(const TellSettings& upper) {
    if (upper.before)
        before = upper.before;
    if (upper.after)
        after = upper.after;
    if (upper.socket)
        socket = upper.socket;
    if (upper.goes_on_if_silent)
        goes_on_if_silent = upper.goes_on_if_silent;
}

}  // namespace checkpointd
