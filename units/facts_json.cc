// SPDX-License-Identifier: LGPL-2.1-or-later
#include <nlohmann/json.hpp>

#include "units/resolve.h"

namespace checkpointd {
namespace {

using Json = nlohmann::json;

Json command_json(const ExecCommand& command) {
    return {{"path", command.path}, {"argv", command.argv}, {"flags", command.flags}};
}

ExecCommand json_command(const Json& json) {
    ExecCommand out;
    out.path = json.at("path").get<std::string>();
    out.argv = json.at("argv").get<std::vector<std::string>>();
    out.flags = json.at("flags").get<std::vector<std::string>>();
    return out;
}

std::string_view kind_name(ExternalKind kind) {
    switch (kind) {
        case ExternalKind::kStdio: return "stdio";
        case ExternalKind::kListen: return "listen";
        case ExternalKind::kJournal: return "journal";
    }
    return "stdio";
}

ExternalKind kind_of(const std::string& name) {
    if (name == "listen")
        return ExternalKind::kListen;
    return name == "journal" ? ExternalKind::kJournal : ExternalKind::kStdio;
}

Json external_json(const UnitExternal& external) {
    return {{"key", external.key},
            {"kind", kind_name(external.kind)},
            {"index", external.index},
            {"name", external.name},
            {"address", external.address}};
}

UnitExternal json_external(const Json& json) {
    return {json.at("key").get<std::string>(), kind_of(json.at("kind").get<std::string>()),
            json.at("index").get<unsigned>(), json.value("name", ""), json.value("address", "")};
}

Json subgroup_json(const Subgroup& group) {
    return {{"path", group.path}, {"uid", group.uid},     {"gid", group.gid},
            {"mode", group.mode}, {"owned", group.owned}, {"settings", group.settings}};
}

Subgroup json_subgroup(const Json& json) {
    return {json.at("path").get<std::string>(),
            json.at("uid").get<uid_t>(),
            json.at("gid").get<gid_t>(),
            json.at("mode").get<mode_t>(),
            json.at("owned").get<std::vector<std::string>>(),
            json.at("settings").get<std::vector<std::pair<std::string, std::string>>>()};
}

Json origin_json(const UnitOrigin& origin) {
    Json programs = Json::array();
    for (const ProgramFile& file : origin.programs)
        programs.push_back({{"path", file.path}, {"size", file.size}, {"mtime_nsec", file.mtime_nsec}});
    return {{"unit_files", origin.unit_files}, {"programs", programs}};
}

UnitOrigin json_origin(const Json& json) {
    UnitOrigin origin;
    origin.unit_files = json.at("unit_files").get<std::map<std::string, std::string>>();
    for (const Json& file : json.at("programs"))
        origin.programs.push_back({file.at("path").get<std::string>(), file.at("size").get<uint64_t>(),
                                   file.at("mtime_nsec").get<uint64_t>()});
    return origin;
}

UnitFacts json_facts(const Json& json) {
    UnitFacts facts;
    facts.id = json.at("id").get<std::string>();
    facts.type = json.at("type").get<std::string>();
    facts.fragment_path = json.value("fragment_path", "");
    facts.transient = json.value("transient", false);
    facts.definition = json.value("definition", "");
    facts.description = json.value("description", "");
    facts.slice = json.value("slice", "");
    facts.controller = json.value("controller", "");
    facts.cgroup = json.value("cgroup", "");
    facts.main_pid = json.at("main_pid").get<pid_t>();
    facts.user = json.value("user", "");
    facts.notify_access = json.value("notify_access", "");
    facts.watchdog_usec = json.value("watchdog_usec", uint64_t{0});
    facts.status_text = json.value("status_text", "");
    facts.pid_file = json.value("pid_file", "");
    facts.pid_file_content = json.value("pid_file_content", "");
    facts.syslog_identifier = json.value("syslog_identifier", "");
    for (const Json& command : json.at("exec_start"))
        facts.exec_start.push_back(json_command(command));
    for (const Json& directory : json.at("directories"))
        facts.directories.push_back({directory.get<std::string>()});
    for (const Json& external : json.at("externals"))
        facts.externals.push_back(json_external(external));
    facts.exec_index = json.value("exec_index", size_t{0});
    facts.only_in_place = json.value("only_in_place", "");
    for (const Json& group : json.value("subgroups", Json::array()))
        facts.subgroups.push_back(json_subgroup(group));
    for (const auto& [key, value] : json.value("tell", std::map<std::string, std::string>()))
        (void)facts.tell.set(key, value);
    if (json.contains("origin"))
        facts.origin = json_origin(json["origin"]);
    return facts;
}

}  // namespace

std::string to_json(const UnitFacts& facts) {
    Json json = {{"id", facts.id},
                 {"type", facts.type},
                 {"fragment_path", facts.fragment_path},
                 {"transient", facts.transient},
                 {"definition", facts.definition},
                 {"description", facts.description},
                 {"slice", facts.slice},
                 {"controller", facts.controller},
                 {"cgroup", facts.cgroup},
                 {"main_pid", facts.main_pid},
                 {"user", facts.user},
                 {"notify_access", facts.notify_access},
                 {"watchdog_usec", facts.watchdog_usec},
                 {"status_text", facts.status_text},
                 {"pid_file", facts.pid_file},
                 {"pid_file_content", facts.pid_file_content},
                 {"syslog_identifier", facts.syslog_identifier},
                 {"exec_start", Json::array()},
                 {"exec_index", facts.exec_index},
                 {"only_in_place", facts.only_in_place},
                 {"subgroups", Json::array()},
                 {"tell", facts.tell.values()},
                 {"directories", Json::array()},
                 {"externals", Json::array()},
                 {"origin", origin_json(facts.origin)}};
    for (const ExecCommand& command : facts.exec_start)
        json["exec_start"].push_back(command_json(command));
    for (const UnitDirectory& directory : facts.directories)
        json["directories"].push_back(directory.path);
    for (const UnitExternal& external : facts.externals)
        json["externals"].push_back(external_json(external));
    for (const Subgroup& group : facts.subgroups)
        json["subgroups"].push_back(subgroup_json(group));
    // Arguments may hold any bytes; what is not UTF-8 is only for show and may be replaced.
    return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

Result<UnitFacts> unit_facts_from_json(std::string_view text) {
    // The library's exceptions end here.
    try {
        return json_facts(Json::parse(text));
    } catch (const Json::exception& error) {
        return fail(ErrorKind::kBadImage, "unit facts", error.what());
    }
}

}  // namespace checkpointd
