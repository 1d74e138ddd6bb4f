// SPDX-License-Identifier: LGPL-2.1-or-later
#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "cli/verbs.h"

namespace checkpointd::cli {
namespace {

bool is_of(const std::string& unit, const std::string& wanted) {
    return wanted.empty() || unit == wanted || unit == wanted + ".service";
}

Result<void> run(const std::string& wanted, const Global& global) {
    CKPT_ASSIGN(auto client, Client::connect());
    CKPT_ASSIGN(auto images, client.images());
    nlohmann::json chosen = nlohmann::json::array();
    std::vector<std::vector<std::string>> rows;
    for (const auto& image : images) {
        if (!is_of(image.at("Unit"), wanted)) continue;
        chosen.push_back(image);
        rows.push_back({image.at("Id"), image.at("State"), human_time(image.at("CreatedUsec")),
                        human_bytes(image.at("Bytes")), human_usec(image.at("FrozenUsec"))});
    }
    if (global.json) print_json(chosen);
    else if (rows.empty()) fmt::print(stderr, "No images.\n");
    else print_table({"IMAGE", "STATE", "TAKEN", "SIZE", "FROZEN"}, rows);
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
