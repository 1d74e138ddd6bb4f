// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "config/policy/duration.h"
#include "core/base/error.h"

namespace checkpointd {

// The settings that the policy has for a plugin, one by one; all that is wrong comes back as one
// error.
class SettingReader {
  public:
    using Get = std::function<const char*(const char* name)>;  // null: nothing is said

    SettingReader(std::string plugin, Get get) : plugin_(std::move(plugin)), get_(std::move(get)) {}

    // `parse` makes a Result of a text; its error has what is wrong in it as object, and what would be right as
    // message. Where nothing is said `out` stays as it is.
    template <typename Value, typename Parse>
    void take(const char* name, Value& out, Parse&& parse) {
        const char* text = get_(name);
        if (text == nullptr)
            return;
        auto value = parse(std::string(text));
        if (value)
            out = std::move(*value);
        else
            errors_.push_back(Error{ErrorKind::kBadInput,
                                    fmt::format("plugins.{}.{}", plugin_, name),
                                    fmt::format("cannot be '{}'", value.error().object),
                                    std::move(value).error().message,
                                    0,
                                    {}});
    }

    // One of two words.
    void take_choice(const char* name, bool& out, const std::string& yes, const std::string& no) {
        take(name, out, [&](const std::string& text) -> Result<bool> {
            if (text == yes || text == no)
                return text == yes;
            return fail(ErrorKind::kBadInput, text, fmt::format("allowed: {}, {}", yes, no));
        });
    }
    void take_switch(const char* name, bool& out) { take_choice(name, out, "yes", "no"); }

    // More than nothing.
    void take_span(const char* name, std::chrono::milliseconds& out, const char* example) {
        take(name, out, [&](const std::string& text) -> Result<std::chrono::milliseconds> {
            auto span = parse_duration(text);
            if (!span || *span <= Microseconds(0) || *span > std::chrono::hours(24 * 7))
                return fail(ErrorKind::kBadInput, text, fmt::format("write it as in \"{}\", up to a week", example));
            return std::chrono::ceil<std::chrono::milliseconds>(*span);
        });
    }

    Result<void> finish() {
        if (errors_.size() == 1)
            return tl::unexpected(std::move(errors_.front()));
        return all_blockers("plugins." + plugin_, "has settings that cannot be right",
                            std::move(errors_));
    }

  private:
    const std::string plugin_;
    const Get get_;
    std::vector<Error> errors_;
};

}  // namespace checkpointd
