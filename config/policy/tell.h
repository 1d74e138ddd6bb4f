// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "core/base/error.h"

namespace checkpointd {

// How a program asks to be told of its checkpoints: said by its unit ([X-Checkpointd], TellBefore=
// ...) and by the policy (tell: {before: ...}); see checkpointd-hooks(7). What is not said is left
// to who said it before.
struct TellSettings {
    std::optional<int> before;  // signal; 0: none
    std::optional<int> after;
    std::optional<std::string> socket;      // path as the unit sees it; empty: none
    std::optional<bool> goes_on_if_silent;  // the checkpoint, when the deadline has passed

    // Sets one of "before", "after", "socket", "when-silent"; kBadInput that tells what is allowed.
    Result<void> set(std::string_view key, const std::string& value);
    // What was said, as set() takes it.
    std::map<std::string, std::string> values() const;
    // What `upper` says wins.
    void lay_over(const TellSettings& upper);

    bool asks_before() const { return before.value_or(0) != 0 || !socket.value_or("").empty(); }
    bool asks() const { return asks_before() || after.value_or(0) != 0; }
    bool operator==(const TellSettings&) const = default;
};

// "SIGUSR1", "SIGRTMIN+3"; "none" for 0.
std::string signal_name(int signal);
// And back; kBadInput for what a program cannot be told by (SIGKILL, SIGSTOP) and for what is no
// signal.
Result<int> parse_signal(const std::string& text);

}  // namespace checkpointd
