// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/kernel/proc_text.h"

#include <charconv>

namespace checkpointd {

std::optional<std::string_view> next_line(std::string_view& text) {
    if (text.empty())
        return std::nullopt;
    size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text = end == text.npos ? std::string_view{} : text.substr(end + 1);
    return line;
}

std::optional<std::string_view> next_word(std::string_view& text) {
    size_t start = text.find_first_not_of(" \t");
    if (start == text.npos) {
        text = {};
        return std::nullopt;
    }
    size_t end = text.find_first_of(" \t", start);
    std::string_view word = text.substr(start, end == text.npos ? end : end - start);
    text = end == text.npos ? std::string_view{} : text.substr(end);
    return word;
}

template <typename T>
std::optional<T> to_number(std::string_view word, int base) {
    T value{};
    auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value, base);
    if (error != std::errc{} || end != word.data() + word.size() || word.empty())
        return std::nullopt;
    return value;
}
template std::optional<int32_t> to_number(std::string_view, int);
template std::optional<int64_t> to_number(std::string_view, int);
template std::optional<uint32_t> to_number(std::string_view, int);
template std::optional<uint64_t> to_number(std::string_view, int);

std::string_view trim(std::string_view text) {
    size_t start = text.find_first_not_of(" \t\n");
    if (start == text.npos)
        return {};
    return text.substr(start, text.find_last_not_of(" \t\n") - start + 1);
}

}  // namespace checkpointd
