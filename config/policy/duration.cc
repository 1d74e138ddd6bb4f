// SPDX-License-Identifier: LGPL-2.1-or-later
#include "config/policy/duration.h"

#include <array>
#include <cctype>
#include <cstdint>
#include <optional>

namespace checkpointd {
namespace {

struct Unit {
    std::string_view name;
    uint64_t usec;
};

// systemd.time(7), without months and years, which have no fixed length. Largest first for formatting;
// the first spelling of a size is the one that is printed.
constexpr std::array kUnits{
    Unit{"w", 604800000000},     Unit{"week", 604800000000}, Unit{"weeks", 604800000000},
    Unit{"d", 86400000000},      Unit{"day", 86400000000},   Unit{"days", 86400000000},
    Unit{"h", 3600000000},       Unit{"hr", 3600000000},     Unit{"hour", 3600000000},
    Unit{"hours", 3600000000},   Unit{"min", 60000000},      Unit{"m", 60000000},
    Unit{"minute", 60000000},    Unit{"minutes", 60000000},  Unit{"s", 1000000},
    Unit{"sec", 1000000},        Unit{"second", 1000000},    Unit{"seconds", 1000000},
    Unit{"ms", 1000},            Unit{"msec", 1000},         Unit{"us", 1},
    Unit{"usec", 1},
};

std::optional<uint64_t> unit_size(std::string_view name) {
    if (name.empty()) return 1000000;
    for (const Unit& unit : kUnits)
        if (unit.name == name) return unit.usec;
    return std::nullopt;
}

void skip_space(std::string_view& text) {
    while (!text.empty() && std::isspace(static_cast<unsigned char>(text.front())))
        text.remove_prefix(1);
}

template <typename Predicate>
std::string_view take_while(std::string_view& text, Predicate wanted) {
    size_t size = 0;
    while (size < text.size() && wanted(static_cast<unsigned char>(text[size]))) ++size;
    auto taken = text.substr(0, size);
    text.remove_prefix(size);
    return taken;
}

constexpr uint64_t kLimit = static_cast<uint64_t>(INT64_MAX) - 1;  // INT64_MAX is kForever

std::optional<uint64_t> whole_part(std::string_view digits) {
    uint64_t value = 0;
    for (char digit : digits) {
        if (value > (kLimit - 9) / 10) return std::nullopt;
        value = value * 10 + static_cast<uint64_t>(digit - '0');
    }
    return value;
}

// What lies behind the decimal point, in microseconds of a unit of `size`; digits below 1 us are dropped.
uint64_t fraction_part(std::string_view digits, uint64_t size) {
    uint64_t sum = 0;
    for (char digit : digits) {
        sum += static_cast<uint64_t>(digit - '0') * size / 10;
        size /= 10;
    }
    return sum;
}

tl::unexpected<Error> bad(std::string_view text, std::string why) {
    return fail(ErrorKind::kBadInput, "\"" + std::string(text) + "\"",
                "not a duration: " + std::move(why), "write it as in \"5min 20s\" or \"infinity\"");
}

// One "NUMBER[.FRACTION] [UNIT]" from the front of `rest`.
Result<uint64_t> take_term(std::string_view whole, std::string_view& rest) {
    auto is_digit = [](unsigned char c) { return std::isdigit(c) != 0; };
    auto digits = take_while(rest, is_digit);
    std::string_view fraction;
    if (!rest.empty() && rest.front() == '.') {
        rest.remove_prefix(1);
        fraction = take_while(rest, is_digit);
        if (fraction.empty()) return bad(whole, "digits are missing behind the point");
    }
    if (digits.empty() && fraction.empty()) return bad(whole, "a number is missing");
    skip_space(rest);
    auto name = take_while(rest, [](unsigned char c) { return std::isalpha(c) != 0; });
    auto size = unit_size(name);
    if (!size) return bad(whole, "unknown unit of time \"" + std::string(name) + "\"");
    auto number = whole_part(digits);
    if (!number || *number > kLimit / *size) return bad(whole, "too long");
    uint64_t part = fraction_part(fraction, *size);
    uint64_t product = *number * *size;
    if (part > kLimit - product) return bad(whole, "too long");
    return product + part;
}

}  // namespace

Result<Microseconds> parse_duration(std::string_view text) {
    std::string_view rest = text;
    skip_space(rest);
    while (!rest.empty() && std::isspace(static_cast<unsigned char>(rest.back())))
        rest.remove_suffix(1);
    if (rest.empty()) return bad(text, "it is empty");
    if (rest == "infinity") return kForever;
    uint64_t sum = 0;
    while (!rest.empty()) {
        CKPT_ASSIGN(uint64_t term, take_term(text, rest));
        if (term > kLimit - sum) return bad(text, "too long");
        sum += term;
        skip_space(rest);
    }
    return Microseconds(static_cast<int64_t>(sum));
}

std::string format_duration(Microseconds span) {
    if (span == kForever) return "infinity";
    auto left = static_cast<uint64_t>(span.count());
    if (left == 0) return "0";
    std::string text;
    for (const Unit& unit : kUnits) {
        if (left < unit.usec) continue;
        if (!text.empty()) text += ' ';
        text += std::to_string(left / unit.usec) + std::string(unit.name);
        left %= unit.usec;
    }
    return text;
}

}  // namespace checkpointd
