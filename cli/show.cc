// SPDX-License-Identifier: LGPL-2.1-or-later
#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include "cli/verbs.h"

namespace checkpointd::cli {
namespace {

std::string human(const std::string& key, const nlohmann::json& value) {
    if (value.is_string()) return value.get<std::string>();
    if (key == "CreatedUsec") return human_time(value.get<uint64_t>());
    if (key == "Bytes") return human_bytes(value.get<uint64_t>());
    if (key.ends_with("Usec")) return human_usec(value.get<uint64_t>());
    return value.dump();
}

Result<void> run(const std::string& id, const Global& global) {
    CKPT_ASSIGN(auto client, Client::connect());
    CKPT_ASSIGN(auto image, client.image(id));
    if (global.json) {
        print_json(image);
        return {};
    }
    for (const auto& [key, value] : image.items())
        fmt::print("{:>12}: {}\n", key, human(key, value));
    return {};
}

}  // namespace

void add_show(CommandLine& line, const Global& global, const Choose& choose) {
    auto id = std::make_shared<std::string>();
    auto verb = line.add_verb("show", "Show what is known of an image");
    verb.add_text("IMAGE", *id, "id, as crctl list prints it", Presence::kRequired);
    verb.when_chosen([=, &global] { choose([=, &global] { return run(*id, global); }); });
}

}  // namespace checkpointd::cli
