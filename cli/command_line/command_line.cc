// SPDX-License-Identifier: LGPL-2.1-or-later
#include "cli/command_line/command_line.h"

#include <CLI/CLI.hpp>

namespace checkpointd {

Verb Verb::add_verb(const std::string& name, const std::string& help) {
    return Verb(*app_->add_subcommand(name, help));
}

void Verb::require_verbs(size_t least, size_t most) { app_->require_subcommand(least, most); }

bool Verb::chosen() const { return app_->parsed(); }

void Verb::when_chosen(std::function<void()> action) { app_->callback(std::move(action)); }

void Verb::add_text(const std::string& name, std::string& value, const std::string& help,
                    Presence presence) {
    app_->add_option(name, value, help)->required(presence == Presence::kRequired);
}

void Verb::add_texts(const std::string& name, std::vector<std::string>& values,
                     const std::string& help, Presence presence) {
    app_->add_option(name, values, help)->required(presence == Presence::kRequired);
}

void Verb::add_number(const std::string& name, uint32_t& value, const std::string& help,
                      Presence presence) {
    app_->add_option(name, value, help)->required(presence == Presence::kRequired);
}

void Verb::add_flag(const std::string& names, bool& value, const std::string& help) {
    app_->add_flag(names, value, help);
}

void Verb::add_text_with_default(const std::string& name, std::string& value,
                                 const std::string& help) {
    app_->add_option(name, value, help)->capture_default_str();
}

void Verb::add_hidden_text(const std::string& name, std::string& value) {
    app_->add_option(name, value)->group("");
}

CommandLine::CommandLine(const std::string& description, const std::string& name,
                         const std::string& version)
    : Verb(*new CLI::App(description, name)), owned_(app_) {
    app_->set_version_flag("--version", version);
}

CommandLine::~CommandLine() = default;

void CommandLine::let_options_follow_verbs() { app_->fallthrough(); }

void CommandLine::set_footer(const std::string& text) { app_->footer(text); }

std::optional<int> CommandLine::parse(int argc, char** argv) {
    try {
        app_->parse(argc, argv);
    } catch (const CLI::RequiredError& error) {
        // A verb that does not exist is named, rather than one asked for.
        const auto unknown = app_->remaining();
        return unknown.empty() ? app_->exit(error) : app_->exit(CLI::ExtrasError(unknown));
    } catch (const CLI::ParseError& error) {
        return app_->exit(error);
    }
    return std::nullopt;
}

}  // namespace checkpointd
