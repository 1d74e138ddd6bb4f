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

void add_checkpoint(CLI::App& app, const Global& global, const Choose& choose) {
    auto options = std::make_shared<Options>();
    auto* verb = app.add_subcommand("checkpoint", "Take a running unit to disk");
    verb->add_option("UNIT", options->unit, "service to take, as in redis.service")->required();
    verb->add_option("--mode", options->mode, "what becomes of it: stop (default), suspend or snapshot");
    verb->add_option("--timeout", options->timeout, "longest duration, as in 5min");
    verb->add_flag("--no-sync", options->no_sync, "do not wait for the disk: a crash may lose the image");
    verb->add_flag("--no-wait", options->no_wait, "print the job and return at once");
    verb->add_flag("--instance", options->instance, kInstanceHelp);
    verb->add_option("--x-fault", options->fault)->group("");
    verb->callback([=, &global] { choose([=, &global] { return run(*options, global); }); });
}

}  // namespace checkpointd::cli
