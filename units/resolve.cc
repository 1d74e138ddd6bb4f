// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/resolve.h"

#include <fcntl.h>
#include <unistd.h>
#include <algorithm>
#include <array>

#include "core/base/io.h"
#include "core/kernel/cgroup.h"
#include "units/blockers.h"
#include "units/check_state.h"
#include "units/definition.h"
#include "units/drop_in.h"
#include "units/pid_namespace.h"
#include "units/scope.h"
#include "units/security_label.h"
#include "units/tell.h"
#include "units/tell_section.h"
#include "units/watchdog_feeder.h"

namespace checkpointd {
namespace {

constexpr std::array<std::string_view, 7> kTypes = {"simple",        "exec",    "idle",   "notify",
                                                    "notify-reload", "forking", "oneshot"};

struct Indispensable {
    std::string_view name;  // or its beginning, with an asterisk
    std::string_view why;
};

constexpr std::array<Indispensable, 5> kIndispensable = {{
    {"dbus.service", "checkpointd speaks to systemd through it"},
    {"dbus-broker.service", "checkpointd speaks to systemd through it"},
    {"systemd-journald*", "all others would wait for it as soon as they log"},
    {"checkpointd.service", "it is checkpointd itself"},
    {"checkpointd-job-*", "it is a job of checkpointd"},
}};

Result<void> read_identity(Systemd& systemd, const std::string& name, UnitFacts& facts) {
    CKPT_ASSIGN(facts.id, systemd.text(name, "Unit", "Id"));
    CKPT_ASSIGN(std::string load_state, systemd.text(name, "Unit", "LoadState"));
    if (load_state == "not-found")
        return fail(ErrorKind::kNotFound, name, "there is no such unit",
                    "units of user managers (systemctl --user) cannot be carried");
    CKPT_TRY(check_name(facts.id));
    if (load_state != "loaded")
        return fail(ErrorKind::kConflict, facts.id, fmt::format("the unit is {}", load_state));
    CKPT_ASSIGN(facts.fragment_path, systemd.text(facts.id, "Unit", "FragmentPath"));
    CKPT_ASSIGN(facts.transient, systemd.boolean(facts.id, "Unit", "Transient"));
    CKPT_ASSIGN(facts.description, systemd.text(facts.id, "Unit", "Description"));
    if (facts.transient) {
        CKPT_ASSIGN(facts.definition, read_definition(systemd, facts.id));
    }
    return {};
}

Result<void> read_service(Systemd& systemd, UnitFacts& facts) {
    const std::string& id = facts.id;
    CKPT_ASSIGN(facts.type, systemd.text(id, "Service", "Type"));
    CKPT_ASSIGN(facts.cgroup, systemd.text(id, "Service", "ControlGroup"));
    CKPT_ASSIGN(uint64_t main_pid, systemd.number(id, "Service", "MainPID"));
    facts.main_pid = static_cast<pid_t>(main_pid);
    CKPT_ASSIGN(facts.user, systemd.text(id, "Service", "User"));
    CKPT_ASSIGN(facts.notify_access, systemd.text(id, "Service", "NotifyAccess"));
    CKPT_ASSIGN(facts.watchdog_usec, read_watchdog(systemd, id));
    CKPT_ASSIGN(facts.status_text, systemd.text(id, "Service", "StatusText"));
    CKPT_ASSIGN(facts.pid_file, systemd.text(id, "Service", "PIDFile"));
    CKPT_ASSIGN(facts.syslog_identifier, systemd.text(id, "Service", "SyslogIdentifier"));
    CKPT_ASSIGN(facts.exec_start, systemd.commands(id, "ExecStart"));
    return {};
}

Result<void> read_directories(Systemd& systemd, UnitFacts& facts) {
    CKPT_ASSIGN(auto runtime, systemd.list(facts.id, "Service", "RuntimeDirectory"));
    for (const std::string& name : runtime)
        facts.directories.push_back({"/run/" + name});
    CKPT_ASSIGN(bool private_tmp, systemd.boolean(facts.id, "Service", "PrivateTmp"));
    if (private_tmp)
        facts.directories.insert(facts.directories.end(), {{"/tmp"}, {"/var/tmp"}});
    return {};
}

// What would be lost with a stop of the unit and a start of it, whoever carries its processes.
Result<std::vector<Error>> losses_by_a_stop(Systemd& systemd, const UnitFacts& facts) {
    std::vector<Error> losses;
    auto add = [&](std::string what, std::string remedy) {
        losses.push_back(Error{ErrorKind::kUnsupported, facts.id, std::move(what), std::move(remedy), 0, {}});
    };
    CKPT_ASSIGN(uint64_t stored, systemd.number(facts.id, "Service", "NFileDescriptorStore"));
    if (stored > 0)
        add(fmt::format("its descriptor store holds {}", stored),
            "systemd drops them when the unit stops; suspend it");
    // systemd goes on with the line after the one that it knows to run, and forgets it where the unit has no such
    // line at a reload (service_deserialize_exec_command() of systemd): the stage helper is none of the unit's.
    if (facts.exec_index + 1 < facts.exec_start.size())
        add(fmt::format("it is in line {} of {} of its ExecStart=", facts.exec_index + 1, facts.exec_start.size()),
            "after a restore systemd would not go on with the next one; suspend it, or wait for the last line");
    return losses;
}

// What systemd drops or does when a unit stops is no matter for one that does not.
Result<void> check_stop_effects(Systemd& systemd, UnitFacts& facts, WayDown way, Blockers& blockers) {
    CKPT_ASSIGN(auto losses, losses_by_a_stop(systemd, facts));
    for (Error& loss : losses) {
        if (way != WayDown::kSuspend)
            blockers.add(std::move(loss));
        else
            facts.only_in_place += (facts.only_in_place.empty() ? "" : "; ") + loss.message;
    }
    if (way == WayDown::kSuspend)
        return {};
    if (way == WayDown::kSnapshot)
        return {};
    CKPT_ASSIGN(auto on_success, systemd.list(facts.id, "Unit", "OnSuccess"));
    if (!on_success.empty())
        blockers.add(ErrorKind::kUnsupported,
                     fmt::format("OnSuccess={} would be triggered by its stop", on_success.front()));
    CKPT_ASSIGN(std::string action, systemd.text(facts.id, "Unit", "SuccessAction"));
    if (action != "none")
        blockers.add(ErrorKind::kUnsupported,
                     fmt::format("SuccessAction={} would be triggered by its stop", action));
    return {};
}

Result<void> check_settings(Systemd& systemd, const UnitFacts& facts, Blockers& blockers) {
    const std::string& id = facts.id;
    if (auto why = why_never_stopped(id); !why.empty())
        blockers.add(ErrorKind::kUnsupported, fmt::format("it must not stand still: {}", why));
    if (std::find(kTypes.begin(), kTypes.end(), facts.type) == kTypes.end())
        blockers.add(ErrorKind::kUnsupported, fmt::format("Type={} cannot be carried", facts.type),
                     facts.type == "dbus" ? "its connection to the bus ends with the process that "
                                             "the bus knows; no other can go on with it"
                                           : "");
    for (const char* property : {"RootDirectory", "RootImage", "PAMName"}) {
        CKPT_ASSIGN(std::string value, systemd.text(id, "Service", property));
        if (!value.empty())
            blockers.add(ErrorKind::kUnsupported, fmt::format("{}= is set", property),
                         fmt::format("units with {}= are not supported yet; switch it off with "
                                     "systemctl edit", property));
    }
    return {};
}

// A namespace that systemd can make for a unit, and the settings that ask for it.
struct NamespaceSetting {
    const char* name;  // in /proc/PID/ns
    const char* flag;
    const char* path;  // of a namespace to enter; none where there is no such setting
};
constexpr NamespaceSetting kNamespaceSettings[] = {
    {"net", "PrivateNetwork", "NetworkNamespacePath"},
    {"ipc", "PrivateIPC", "IPCNamespacePath"},
    {"uts", "ProtectHostname", nullptr},
    {"user", "PrivateUsers", nullptr},
};

Result<bool> is_asked_for(Systemd& systemd, const std::string& id,
                          const NamespaceSetting& setting) {
    CKPT_ASSIGN(bool flag, systemd.boolean(id, "Service", setting.flag));
    if (flag || setting.path == nullptr)
        return flag;
    CKPT_ASSIGN(std::string path, systemd.text(id, "Service", setting.path));
    return !path.empty();
}

Result<bool> is_of_the_host(pid_t pid, const char* ns) {
    CKPT_ASSIGN(std::string theirs, read_link(AT_FDCWD, fmt::format("/proc/{}/ns/{}", pid, ns)));
    CKPT_ASSIGN(std::string host, read_link(AT_FDCWD, fmt::format("/proc/1/ns/{}", ns)));
    return theirs == host;
}

Result<void> check_pid_namespace(UnitFacts& facts, WayDown way, Blockers& blockers) {
    CKPT_ASSIGN(const bool of_host, is_of_the_host(facts.main_pid, "pid"));
    if (of_host)
        return {};
    CKPT_ASSIGN(const auto pids, cgroup_processes(facts.cgroup_dir));
    facts.namespace_init = find_namespace_init(pids);
    if (facts.namespace_init == 0)
        blockers.add(ErrorKind::kUnsupported, "its processes live in a PID namespace of their own",
                     "switch PrivatePIDs= off with systemctl edit");
    else if (way == WayDown::kSuspend)
        blockers.add(ErrorKind::kUnsupported,
                     "a restore gave it a PID namespace, because of taken PIDs, which would end with its processes",
                     "mode stop takes it down");
    return {};
}

// Namespaces are not carried: systemd makes them anew. Those that a program made for itself would
// be lost.
Result<void> check_namespaces(Systemd& systemd, UnitFacts& facts, WayDown way, Blockers& blockers) {
    CKPT_TRY(check_pid_namespace(facts, way, blockers));
    for (const NamespaceSetting& setting : kNamespaceSettings) {
        CKPT_ASSIGN(bool of_host, is_of_the_host(facts.main_pid, setting.name));
        if (of_host)
            continue;
        bool asked_for = false;  // nobody makes one for a scope
        if (!facts.is_scope()) {
            CKPT_ASSIGN(asked_for, is_asked_for(systemd, facts.id, setting));
        }
        if (!asked_for)
            blockers.add(ErrorKind::kUnsupported,
                         fmt::format("its main process made itself a {} namespace", setting.name),
                         fmt::format("let systemd make it: {}=yes", setting.flag));
    }
    return {};
}

Result<void> check_processes(const UnitFacts& facts, WayDown way, Blockers& blockers) {
    CKPT_ASSIGN(auto all, cgroup_processes(facts.cgroup_dir));
    if (all.empty())
        blockers.add(ErrorKind::kConflict, "it has no processes", "there is nothing to checkpoint");
    if (auto groups = read_subgroups(facts.cgroup_dir); !groups)
        blockers.add(groups.error().kind, groups.error().line());
    else if (way == WayDown::kSuspend && hands_controllers_down(*groups))
        blockers.add(ErrorKind::kUnsupported, "its control group hands controllers down, so no placeholder may live in it",
                     "mode stop takes it down");
    CKPT_ASSIGN(const std::string own, security_label(getpid()));
    check_labels(all, own, blockers);
    return {};
}

Result<void> locate_cgroup(UnitFacts& facts) {
    CKPT_ASSIGN(const std::string root, cgroup2_mount_point());
    facts.cgroup_dir = root + facts.cgroup;
    return {};
}

Result<void> resolve_service(Systemd& systemd, UnitFacts& facts, WayDown way, bool stop_is_queued,
                             Blockers& blockers) {
    CKPT_TRY(read_service(systemd, facts));
    CKPT_TRY(read_directories(systemd, facts));
    CKPT_TRY(check_state(systemd, facts, stop_is_queued, blockers));
    CKPT_TRY(check_settings(systemd, facts, blockers));
    return check_stop_effects(systemd, facts, way, blockers);
}

Result<void> resolve_scope(Systemd& systemd, UnitFacts& facts, WayDown way, Blockers& blockers) {
    CKPT_TRY(read_scope(systemd, facts));
    if (way == WayDown::kSuspend)
        blockers.add(ErrorKind::kUnsupported, "a scope cannot be suspended in place",
                     "mode stop takes it down, and a restore makes it anew");
    return check_scope(systemd, facts, blockers);
}

}  // namespace

std::string_view why_never_stopped(std::string_view unit) {
    for (const auto& [name, why] : kIndispensable)
        if (name.ends_with('*') ? unit.starts_with(name.substr(0, name.size() - 1)) : unit == name)
            return why;
    return {};
}

Result<WayDown> parse_way_down(std::string_view text) {
    if (text == "stop") return WayDown::kStop;
    if (text == "suspend") return WayDown::kSuspend;
    if (text == "snapshot") return WayDown::kSnapshot;
    return fail(ErrorKind::kBadInput, fmt::format("mode \"{}\"", text), "is not known",
                "known: snapshot, stop, suspend");
}

Result<UnitFacts> resolve_unit(Systemd& systemd, const std::string& name, WayDown way,
                               const TellSettings& tell_by_policy, bool stop_is_queued) {
    if (!is_valid_unit_name(name))
        return fail(ErrorKind::kBadInput, name, "this is not a unit's name");
    UnitFacts facts;
    CKPT_TRY(read_identity(systemd, name, facts));
    Blockers blockers(facts.id);
    if (facts.id.ends_with(".scope"))
        CKPT_TRY(resolve_scope(systemd, facts, way, blockers));
    else
        CKPT_TRY(resolve_service(systemd, facts, way, stop_is_queued, blockers));
    if (!facts.cgroup.empty()) {
        CKPT_TRY(locate_cgroup(facts));
        CKPT_TRY(check_processes(facts, way, blockers));
    }
    CKPT_ASSIGN(facts.tell, tell_settings_of(systemd, facts.id, blockers));
    facts.tell.lay_over(tell_by_policy);
    if (facts.main_pid != 0) {
        CKPT_TRY(check_namespaces(systemd, facts, way, blockers));
        check_can_be_told(facts.main_pid, facts.tell, blockers);
    }
    CKPT_TRY(std::move(blockers).result());
    CKPT_ASSIGN(auto pids, cgroup_processes(facts.cgroup_dir));
    std::erase(pids, facts.namespace_init);
    CKPT_ASSIGN(facts.externals, find_externals(facts.main_pid, pids));
    if (!facts.pid_file.empty())
        facts.pid_file_content = read_file(AT_FDCWD, facts.pid_file, 4096).value_or("");
    return facts;
}

}  // namespace checkpointd
