// SPDX-License-Identifier: LGPL-2.1-or-later
#include "cli/instance.h"
#include "cli/verbs.h"

namespace checkpointd::cli {
namespace {

struct Options {
    std::string unit;
    std::string mode;
    std::string timeout;
    std::string fault;
    bool no_sync = false;
    bool no_wait = false;
    bool instance = false;
};

Result<void> run(const Options& options, const Global& global) {
    CallOptions call;
    if (!options.mode.empty()) call.mode = options.mode;
    if (options.no_sync) call.sync = false;
    CKPT_ASSIGN(call.timeout_usec, timeout_option(options.timeout));
    if (!options.fault.empty()) call.fault = options.fault;
    CKPT_ASSIGN(auto client, Client::connect());
    return for_unit(options.unit, options.instance, [&](const std::string& unit) {
        return run_job(client, client.checkpoint(unit, call), options.no_wait, global);
    });
}

}  // namespace

void add_checkpoint(CommandLine& line, const Global& global, const Choose& choose) {
    auto options = std::make_shared<Options>();
    auto verb = line.add_verb("checkpoint", "Take a running unit to disk");
    verb.add_text("UNIT", options->unit, "service to take, as in redis.service", Presence::kRequired);
    verb.add_text("--mode", options->mode, "what becomes of it: stop (default), suspend or snapshot");
    verb.add_text("--timeout", options->timeout, "longest duration, as in 5min");
    verb.add_flag("--no-sync", options->no_sync, "do not wait for the disk: a crash may lose the image");
    verb.add_flag("--no-wait", options->no_wait, "print the job and return at once");
    verb.add_flag("--instance", options->instance, kInstanceHelp);
    verb.add_hidden_text("--x-fault", options->fault);
    verb.when_chosen([=, &global] { choose([=, &global] { return run(*options, global); }); });
}

}  // namespace checkpointd::cli
