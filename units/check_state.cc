// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/check_state.h"

#include <algorithm>
#include <array>
#include <fcntl.h>
#include <fnmatch.h>
#include <optional>

#include "core/base/io.h"
#include "units/placeholder.h"

namespace checkpointd {
namespace {

struct RefusedName {
    const char* pattern;
    const char* what;
    const char* remedy;
};

constexpr std::array<RefusedName, 3> kRefusedNames = {{
    {"init.scope", "it is systemd itself", ""},
    {"session-*.scope", "it is a login session, which ends with its terminal and its logind session",
     "checkpoint the program alone: run it by systemd-run, as a unit of its own"},
    {"user@*.service", "it is the service manager of a user; units of `systemctl --user` cannot be carried",
     "run the program as a unit of the system, with User="},
}};

// What to do about a service whose program does not simply run.
const char* remedy_for(const std::string& state) {
    if (state == "activating")
        return "wait until it has started";
    if (state == "reloading")
        return "wait until it has reloaded";
    if (state == "deactivating")
        return "wait until it has stopped, then start it";
    return "start it first";
}

// A oneshot's program runs while its unit is activating: in its ExecStart= lines, not in those around them.
bool runs(const UnitFacts& facts, const std::string& substate) {
    return substate == "running" || (facts.type == "oneshot" && substate == "start");
}

std::string not_running(const std::string& state, const std::string& substate) {
    if (substate == "auto-restart" || substate == "auto-restart-queued")
        return "it has ended, and systemd is about to restart it";
    if (substate == "exited")
        return "its program has ended, nothing of it runs";
    return fmt::format("the unit is {} ({}), not running", state, substate);
}

std::vector<std::string> command_line(pid_t pid) {
    std::string text = read_file(AT_FDCWD, fmt::format("/proc/{}/cmdline", pid)).value_or("");
    std::vector<std::string> out;
    for (size_t at = 0; at < text.size(); at = text.find('\0', at) + 1)
        out.emplace_back(text.c_str() + at);
    return out;
}

// systemd notes how a command went when it has ended, so the running one is the first without a note. But it
// forgets its notes when it is reloaded; then the arguments of the running process tell.
std::optional<size_t> running_command(const UnitFacts& facts) {
    const auto& commands = facts.exec_start;
    if (commands.size() <= 1)
        return 0;
    auto first = std::find_if(commands.begin(), commands.end(),
                              [](const ExecCommand& command) { return command.code == 0; });
    if (first != commands.begin() && first != commands.end())
        return static_cast<size_t>(first - commands.begin());
    std::optional<size_t> found;
    const std::vector<std::string> arguments = command_line(facts.main_pid);
    for (size_t i = 0; i < commands.size(); ++i)
        if (commands[i].argv == arguments) {
            if (found)
                return {};
            found = i;
        }
    return found;
}

void check_command(UnitFacts& facts, Blockers& blockers) {
    auto running = running_command(facts);
    if (!running) {
        blockers.add(ErrorKind::kUnsupported, "which of its ExecStart= lines runs cannot be told");
        return;
    }
    facts.exec_index = *running;
}

}  // namespace

Result<void> check_name(const std::string& id) {
    for (const RefusedName& refused : kRefusedNames)
        if (fnmatch(refused.pattern, id.c_str(), 0) == 0)
            return fail(ErrorKind::kUnsupported, id, refused.what, refused.remedy);
    if (!id.ends_with(".service") && !id.ends_with(".scope"))
        return fail(ErrorKind::kUnsupported, id, "only services and scopes can be checkpointed");
    return {};
}

Result<void> check_state(Systemd& systemd, UnitFacts& facts, bool stop_is_queued, Blockers& blockers) {
    CKPT_ASSIGN(std::string state, systemd.text(facts.id, "Unit", "ActiveState"));
    CKPT_ASSIGN(std::string substate, systemd.text(facts.id, "Unit", "SubState"));
    if (!runs(facts, substate)) {
        blockers.add(ErrorKind::kConflict, not_running(state, substate), remedy_for(state));
        return {};
    }
    CKPT_ASSIGN(bool has_job, systemd.has_job(facts.id));
    if (has_job && facts.type != "oneshot" && !stop_is_queued)
        blockers.add(ErrorKind::kConflict, "systemd has a job queued for it", "try again later");
    CKPT_ASSIGN(auto placeholder, Placeholder::find(facts.main_pid));
    if (placeholder)
        blockers.add(ErrorKind::kConflict, fmt::format("it is suspended, on image {}", placeholder->image()),
                     "crctl restore lets it go on; systemctl stop ends it");
    if (facts.main_pid == 0)
        blockers.add(ErrorKind::kUnsupported, "it has no main process that systemd knows",
                     "give the unit a PIDFile=, or a Type= with a main process");
    else if (facts.type == "oneshot")
        check_command(facts, blockers);
    return {};
}

}  // namespace checkpointd
