// SPDX-License-Identifier: LGPL-2.1-or-later
#include <algorithm>
#include <map>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "cli/verbs.h"

namespace checkpointd::cli {
namespace {

bool is_of(const std::string& unit, const std::string& wanted) {
    return wanted.empty() || unit == wanted || unit == wanted + ".service";
}

// Units that are enabled and have nothing to be restored from.
void print_without_image(const nlohmann::json& images, const std::map<std::string, std::string>& enabled) {
    for (const auto& [unit, how] : enabled) {
        const bool has_image = std::any_of(images.begin(), images.end(), [&name = unit](const auto& image) {
            return image.at("Unit") == name;
        });
        if (!has_image) fmt::print("{} is enabled and has no image.\n", unit);
    }
}

Result<void> run(const std::string& wanted, const Global& global) {
    CKPT_ASSIGN(auto client, Client::connect());
    CKPT_ASSIGN(auto images, client.images());
    CKPT_ASSIGN(auto units, client.units());
    nlohmann::json chosen = nlohmann::json::array();
    std::vector<std::vector<std::string>> rows;
    std::map<std::string, std::string> enabled;
    for (const auto& unit : units)
        if (is_of(unit.at("Unit"), wanted)) enabled[unit.at("Unit")] = unit.at("Enabled");
    for (auto& image : images) {
        const std::string unit = image.at("Unit");
        if (!is_of(unit, wanted)) continue;
        image["Enabled"] = enabled[unit];
        chosen.push_back(image);
        rows.push_back({image.at("Id"), image.at("State"), enabled[unit],
                        human_time(image.at("CreatedUsec")), human_bytes(image.at("Bytes")),
                        human_usec(image.at("FrozenUsec"))});
    }
    if (global.json) {
        print_json(chosen);
        return {};
    }
    if (rows.empty()) fmt::print(stderr, "No images.\n");
    else print_table({"IMAGE", "STATE", "AT START", "TAKEN", "SIZE", "FROZEN"}, rows);
    print_without_image(images, enabled);
    return {};
}

}  // namespace

void add_list(CommandLine& line, const Global& global, const Choose& choose) {
    auto unit = std::make_shared<std::string>();
    auto verb = line.add_verb("list", "List images");
    verb.add_text("UNIT", *unit, "only those of this unit");
    verb.when_chosen([=, &global] { choose([=, &global] { return run(*unit, global); }); });
}

}  // namespace checkpointd::cli
