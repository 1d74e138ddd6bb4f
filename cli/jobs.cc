// SPDX-License-Identifier: LGPL-2.1-or-later
#include <fmt/format.h>

#include "cli/verbs.h"

namespace checkpointd::cli {
namespace {

Result<void> list(const Global& global) {
    CKPT_ASSIGN(auto client, Client::connect());
    CKPT_ASSIGN(auto jobs, client.jobs());
    if (global.json) {
        print_json(jobs);
        return {};
    }
    std::vector<std::vector<std::string>> rows;
    for (const auto& job : jobs)
        rows.push_back({std::to_string(job.at("Id").get<uint32_t>()), job.at("Type"), job.at("Unit"),
                        job.at("State"), fmt::format("{:.0f}%", job.at("Progress").get<double>() * 100),
                        job.at("Phase")});
    if (rows.empty()) fmt::print(stderr, "No jobs.\n");
    else print_table({"JOB", "TYPE", "UNIT", "STATE", "DONE", "STEP"}, rows);
    return {};
}

Result<void> cancel(uint32_t id) {
    CKPT_ASSIGN(auto client, Client::connect());
    return client.cancel(job_path(id));
}

Result<void> follow(uint32_t id, const Global& global) {
    CKPT_ASSIGN(auto client, Client::connect());
    return follow_job(client, job_path(id), global);
}

}  // namespace

void add_jobs(CLI::App& app, const Global& global, const Choose& choose) {
    auto id = std::make_shared<uint32_t>();
    auto* verb = app.add_subcommand("jobs", "List, follow and cancel jobs");
    verb->require_subcommand(0, 1);
    auto* cancel_verb = verb->add_subcommand("cancel", "Ask a job to undo what it did and end");
    cancel_verb->add_option("JOB", *id, "number of the job")->required();
    auto* follow_verb = verb->add_subcommand("follow", "Wait until a job has ended");
    follow_verb->add_option("JOB", *id, "number of the job")->required();
    verb->callback([=, &global] {
        choose([=, &global]() -> Result<void> {
            if (cancel_verb->parsed()) return cancel(*id);
            if (follow_verb->parsed()) return follow(*id, global);
            return list(global);
        });
    });
}

}  // namespace checkpointd::cli
