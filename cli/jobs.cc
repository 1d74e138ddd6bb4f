// SPDX-License-Identifier: LGPL-2.1-or-later
#include <fmt/core.h>
#include <nlohmann/json.hpp>

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

void add_jobs(CommandLine& line, const Global& global, const Choose& choose) {
    auto id = std::make_shared<uint32_t>();
    auto verb = line.add_verb("jobs", "List, follow and cancel jobs");
    verb.require_verbs(0, 1);
    auto cancel_verb = verb.add_verb("cancel", "Ask a job to undo what it did and end");
    cancel_verb.add_number("JOB", *id, "number of the job", Presence::kRequired);
    auto follow_verb = verb.add_verb("follow", "Wait until a job has ended");
    follow_verb.add_number("JOB", *id, "number of the job", Presence::kRequired);
    verb.when_chosen([=, &global] {
        choose([=, &global]() -> Result<void> {
            if (cancel_verb.chosen()) return cancel(*id);
            if (follow_verb.chosen()) return follow(*id, global);
            return list(global);
        });
    });
}

}  // namespace checkpointd::cli
