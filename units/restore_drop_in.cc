// SPDX-License-Identifier: LGPL-2.1-or-later
#include <algorithm>

#include "units/drop_in.h"
#include "units/stage.h"

namespace checkpointd {
namespace {

bool has_flag(const ExecCommand& command, std::string_view flag) {
    return std::find(command.flags.begin(), command.flags.end(), flag) != command.flags.end();
}

// The unit's own command as arguments of the helper. Its prefixes stay, so that a cold start by the helper
// runs with the privileges and the environment expansion of the unit's own line.
std::string helper_line(const ExecCommand& command, const StageOptions& options) {
    bool expands = !has_flag(command, "no-env-expand");
    std::string out = expands ? "" : ":";
    if (has_flag(command, "ignore-failure"))
        out += '-';
    if (has_flag(command, "privileged"))
        out += '+';
    else if (has_flag(command, "no-setuid"))
        out += '!';
    else if (has_flag(command, "ambient"))
        out += "!!";
    out += fmt::format("{} {} {}", options.helper,
                       options.cold_start_on_deadline ? "exec" : "leave",
                       options.helper_deadline.count());
    // systemd expands no variables in a command's path, but it would in the helper's argument.
    out += ' ' + (expands ? quote_literal_word(command.path) : quote_word(command.path));
    for (const std::string& word : command.argv)
        out += ' ' + quote_word(word);
    return out;
}

std::string identifier(const UnitFacts& facts, const ExecCommand& command) {
    if (!facts.syslog_identifier.empty())
        return facts.syslog_identifier;
    return command.path.substr(command.path.rfind('/') + 1);
}

}  // namespace

std::string restore_drop_in(const UnitFacts& facts, const std::vector<ExecCommand>& commands,
                            const StageOptions& options) {
    const ExecCommand own = facts.exec_index < commands.size() ? commands[facts.exec_index] : ExecCommand{};
    DropIn text("Written by checkpointd while it restores this unit; removed right after.");
    text.include(facts.definition);
    if (facts.is_scope()) {
        // If this comes to nothing, all of it is killed.
        text.section("Scope");
        text.set("KillSignal", "SIGKILL");
        return text.text();
    }
    text.section("Unit");
    text.set("StartLimitIntervalSec", "0");
    text.section("Service");
    if (facts.type != "forking" && facts.type != "oneshot")
        text.set("Type", "notify");
    text.set("TimeoutStartSec", "infinity");
    // If this comes to nothing, all of it is killed, and the unit did not fail; at a gate it starts cold.
    if (options.at_gate) {
        text.set_bare_start();
        // Should nobody come to the helper, nor to undo: it leaves, and the gate of the next start puts things right.
        if (facts.type == "forking")
            text.set("Restart", "on-failure");  // the setting below is for main processes
        else
            text.set("RestartForceExitStatus", std::to_string(kNobodyCame));
    } else {
        text.set_quiet_end();
    }
    if (auto name = escape_value(identifier(facts, own)); name && !name->empty())
        text.set("SyslogIdentifier", *name);
    // Set for a unit without any sandbox it would give it a mount namespace.
    if (options.needs_exec_path)
        text.set("ExecPaths", options.helper);
    // Two of the helper's four; the others are allowed by systemd itself. To a unit without a
    // filter it would give one. The restored processes have their own filters.
    if (options.needs_calls)
        text.set("SystemCallFilter", "rt_sigprocmask rt_sigtimedwait");
    if (!options.at_gate)
        text.set("ExecCondition", "");
    for (const char* key : {"ExecStartPre", "ExecStartPost", "ExecStart"})
        text.set(key, "");
    text.set("ExecStart", helper_line(own, options));
    return text.text();
}

}  // namespace checkpointd
