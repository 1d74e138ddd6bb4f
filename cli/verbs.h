// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "cli/client.h"
#include "cli/command_line/command_line.h"
#include "core/base/error.h"

namespace checkpointd::cli {

// What every verb gets from the command line.
struct Global {
    bool json = false;
};

// A verb adds itself to `line` and what it does when it is chosen; the result becomes the exit
// status. Each stands in the file of its name.
using Action = std::function<Result<void>()>;
using Choose = std::function<void(Action)>;
void add_checkpoint(CommandLine& line, const Global& global, const Choose& choose);
void add_restore(CommandLine& line, const Global& global, const Choose& choose);
void add_enable(CommandLine& line, const Global& global, const Choose& choose);
void add_list(CommandLine& line, const Global& global, const Choose& choose);
void add_show(CommandLine& line, const Global& global, const Choose& choose);
void add_explain(CommandLine& line, const Global& global, const Choose& choose);
void add_rm(CommandLine& line, const Global& global, const Choose& choose);
void add_jobs(CommandLine& line, const Global& global, const Choose& choose);
void add_policy(CommandLine& line, const Global& global, const Choose& choose);

// Follows a job to its end with a progress bar on a terminal, and prints how it went. Ctrl-C cancels it;
// a second one leaves it to itself.
Result<void> follow_job(Client& client, const std::string& job_path, const Global& global);
// Starts a job and follows it, or only prints it with `no_wait`.
Result<void> run_job(Client& client, Result<std::string> job, bool no_wait, const Global& global);

// Parses "5min" of a --timeout option.
Result<std::optional<uint64_t>> timeout_option(const std::string& text);

// "1.2 GiB", "340 ms", "2026-11-21 10:00:00"
std::string human_bytes(uint64_t bytes);
std::string human_usec(uint64_t usec);
std::string human_time(uint64_t realtime_usec);
// Rows of text under a header, columns aligned.
void print_table(const std::vector<std::string>& header,
                 const std::vector<std::vector<std::string>>& rows);
void print_json(const nlohmann::json& value);
// An object of what is no nlohmann::json yet.
using Field = std::pair<const char*, std::variant<bool, std::string, std::vector<std::string>>>;
void print_fields(std::initializer_list<Field> fields);

}  // namespace checkpointd::cli
