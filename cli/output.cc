// SPDX-License-Identifier: LGPL-2.1-or-later
#include <algorithm>
#include <ctime>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "cli/verbs.h"
#include "config/policy/duration.h"

namespace checkpointd::cli {

std::string human_bytes(uint64_t bytes) {
    const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = static_cast<double>(bytes);
    size_t unit = 0;
    while (value >= 1024 && unit + 1 < std::size(units)) {
        value /= 1024;
        ++unit;
    }
    return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, units[unit]);
}

std::string human_usec(uint64_t usec) {
    if (usec < 1000) return fmt::format("{} us", usec);
    if (usec < 1000000) return fmt::format("{:.1f} ms", static_cast<double>(usec) / 1e3);
    return fmt::format("{:.2f} s", static_cast<double>(usec) / 1e6);
}

std::string human_time(uint64_t realtime_usec) {
    const auto seconds = static_cast<time_t>(realtime_usec / 1000000);
    tm parts{};
    char text[64];
    localtime_r(&seconds, &parts);
    return {text, strftime(text, sizeof(text), "%F %T", &parts)};
}

void print_table(const std::vector<std::string>& header,
                 const std::vector<std::vector<std::string>>& rows) {
    std::vector<size_t> widths;
    for (const std::string& title : header) widths.push_back(title.size());
    for (const auto& row : rows)
        for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
    auto print_row = [&](const std::vector<std::string>& row) {
        std::string line;
        for (size_t i = 0; i < row.size(); ++i)
            line += i + 1 < row.size() ? fmt::format("{:<{}}  ", row[i], widths[i]) : row[i];
        fmt::print("{}\n", line);
    };
    print_row(header);
    for (const auto& row : rows) print_row(row);
}

void print_json(const nlohmann::json& value) {
    fmt::print("{}\n", value.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
}

void print_fields(std::initializer_list<Field> fields) {
    nlohmann::json object = nlohmann::json::object();
    for (const auto& [name, value] : fields)
        std::visit([&, key = name](const auto& plain) { object[key] = plain; }, value);
    print_json(object);
}

Result<std::optional<uint64_t>> timeout_option(const std::string& text) {
    if (text.empty()) return std::optional<uint64_t>{};
    CKPT_ASSIGN(const Microseconds span, parse_duration(text));
    return std::optional<uint64_t>{span == kForever ? UINT64_MAX
                                                    : static_cast<uint64_t>(span.count())};
}

}  // namespace checkpointd::cli
