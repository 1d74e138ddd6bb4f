// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Small tools to take apart the texts of /proc.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace checkpointd {

// The next line without its newline; `text` moves behind it. None at the end.
std::optional<std::string_view> next_line(std::string_view& text);
// The next word between blanks (space, tab); `text` moves behind it. None when only blanks are left.
std::optional<std::string_view> next_word(std::string_view& text);
// The whole of `word` as a number, or none. A leading '-' is allowed where T is signed.
template <typename T>
std::optional<T> to_number(std::string_view word, int base = 10);
// The next word as a number.
template <typename T>
std::optional<T> next_number(std::string_view& text, int base = 10) {
    auto word = next_word(text);
    return word ? to_number<T>(*word, base) : std::nullopt;
}
std::string_view trim(std::string_view text);

}  // namespace checkpointd
