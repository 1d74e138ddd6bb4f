// SPDX-License-Identifier: LGPL-2.1-or-later
#include "cli/verbs.h"

namespace checkpointd::cli {
namespace {

Result<void> run(const std::vector<std::string>& units, bool on, const Global& global) {
    CKPT_ASSIGN(auto client, Client::connect());
    for (const std::string& unit : units) CKPT_TRY(on ? client.enable(unit) : client.disable(unit));
    if (global.json) print_fields({{on ? "Enabled" : "Disabled", units}});
    return {};
}

void add(CommandLine& line, const char* name, const char* help, bool on, const Global& global,
         const Choose& choose) {
    auto units = std::make_shared<std::vector<std::string>>();
    auto verb = line.add_verb(name, help);
    verb.add_texts("UNIT", *units, "services", Presence::kRequired);
    verb.when_chosen([=, &global] { choose([=, &global] { return run(*units, on, global); }); });
}

}  // namespace

void add_enable(CommandLine& line, const Global& global, const Choose& choose) {
    add(line, "enable", "Restore units from their images when they start", true, global, choose);
    add(line, "disable", "Start units cold, as their unit files say", false, global, choose);
}

}  // namespace checkpointd::cli
