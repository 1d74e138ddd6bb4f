// SPDX-License-Identifier: LGPL-2.1-or-later
#include "cli/instance.h"
#include "cli/verbs.h"

namespace checkpointd::cli {
namespace {

struct Options {
    std::string target;
    std::string timeout;
    std::string fault;
    bool no_wait = false;
    bool instance = false;
};

Result<void> run(const Options& options, const Global& global) {
    CallOptions call;
    CKPT_ASSIGN(call.timeout_usec, timeout_option(options.timeout));
    if (!options.fault.empty()) call.fault = options.fault;
    CKPT_ASSIGN(auto client, Client::connect());
    return for_unit(options.target, options.instance, [&](const std::string& target) {
        return run_job(client, client.restore(target, call), options.no_wait, global);
    });
}

}  // namespace

void add_restore(CommandLine& line, const Global& global, const Choose& choose) {
    auto options = std::make_shared<Options>();
    auto verb = line.add_verb("restore", "Bring a unit back from its image");
    verb.add_text("UNIT|IMAGE", options->target, "unit (its newest image) or an image's id",
                  Presence::kRequired);
    verb.add_text("--timeout", options->timeout, "longest duration, as in 5min");
    verb.add_flag("--no-wait", options->no_wait, "print the job and return at once");
    verb.add_flag("--instance", options->instance, kInstanceHelp);
    verb.add_hidden_text("--x-fault", options->fault);
    verb.when_chosen([=, &global] { choose([=, &global] { return run(*options, global); }); });
}

}  // namespace checkpointd::cli
