// SPDX-License-Identifier: LGPL-2.1-or-later
#include "cli/verbs.h"

namespace checkpointd::cli {
namespace {

struct Options {
    std::vector<std::string> ids;
    bool force = false;
};

Result<void> run(const Options& options, const Global& global) {
    CKPT_ASSIGN(auto client, Client::connect());
    for (const std::string& id : options.ids) CKPT_TRY(client.remove(id, options.force));
    if (global.json) print_fields({{"Removed", options.ids}});
    return {};
}

}  // namespace

void add_rm(CommandLine& line, const Global& global, const Choose& choose) {
    auto options = std::make_shared<Options>();
    auto verb = line.add_verb("rm", "Delete images");
    verb.add_texts("IMAGE", options->ids, "ids, as crctl list prints them", Presence::kRequired);
    verb.add_flag("--force", options->force, "also images that are ready to be restored");
    verb.when_chosen([=, &global] { choose([=, &global] { return run(*options, global); }); });
}

}  // namespace checkpointd::cli
