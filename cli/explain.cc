// SPDX-License-Identifier: LGPL-2.1-or-later
#include <cstdio>

#include "cli/verbs.h"

namespace checkpointd::cli {
namespace {

Result<void> run(const std::string& id, const Global& global) {
    CKPT_ASSIGN(auto client, Client::connect());
    CKPT_ASSIGN(auto plan, client.explain(id));
    if (global.json) print_fields({{"Image", id}, {"Plan", plan}});
    else std::fwrite(plan.data(), 1, plan.size(), stdout);
    return {};
}

}  // namespace

void add_explain(CommandLine& line, const Global& global, const Choose& choose) {
    auto id = std::make_shared<std::string>();
    auto verb = line.add_verb("explain", "Print the plan that a restore would execute");
    verb.add_text("IMAGE", *id, "id, as crctl list prints it", Presence::kRequired);
    verb.when_chosen([=, &global] { choose([=, &global] { return run(*id, global); }); });
}

}  // namespace checkpointd::cli
