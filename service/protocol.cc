// SPDX-License-Identifier: LGPL-2.1-or-later
#include "service/protocol.h"

#include <fcntl.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "core/base/io.h"

namespace checkpointd {
namespace {

using nlohmann::json;

constexpr int kVersion = 1;
constexpr unsigned kMaxCauses = 10000;
constexpr unsigned kMaxDepth = 16;

constexpr ErrorKind kAllKinds[] = {
    ErrorKind::kSystem,   ErrorKind::kUnsupported, ErrorKind::kBadInput, ErrorKind::kBadImage,
    ErrorKind::kNotFound, ErrorKind::kConflict,    ErrorKind::kDenied,   ErrorKind::kGone,
    ErrorKind::kTimeout,  ErrorKind::kCancelled,   ErrorKind::kInternal};

struct ActionName {
    Fault::Action action;
    std::string_view name;
};
constexpr ActionName kActions[] = {{Fault::Action::kFail, "fail"},
                                   {Fault::Action::kKill, "kill"},
                                   {Fault::Action::kHang, "hang"},
                                   {Fault::Action::kEnospc, "enospc"},
                                   {Fault::Action::kStop, "stop"}};

json error_to_json(const Error& error) {
    json causes = json::array();
    for (const Error& cause : error.causes) causes.push_back(error_to_json(cause));
    return {{"kind", to_string(error.kind)}, {"object", error.object},   {"message", error.message},
            {"remedy", error.remedy},        {"errno", error.errno_code}, {"causes", causes}};
}

ErrorKind kind_from(const std::string& name) {
    for (ErrorKind kind : kAllKinds)
        if (to_string(kind) == name) return kind;
    return ErrorKind::kInternal;
}

Error error_from(const json& value, unsigned depth = 0) {
    Error error{kind_from(value.at("kind").get<std::string>()), value.at("object"),
                value.at("message"), value.at("remedy"), value.at("errno"), {}};
    const json& causes = value.at("causes");
    for (size_t i = 0; depth < kMaxDepth && i < causes.size() && i < kMaxCauses; ++i)
        error.causes.push_back(error_from(causes[i], depth + 1));
    return error;
}

json plugins_to_json(const UnitPolicy& policy) {
    json plugins = json::object();
    for (const auto& [name, plugin] : policy.plugins)
        plugins[name] = {{"enabled", plugin.is_enabled()}, {"settings", plugin.settings}};
    return plugins;
}

json policy_to_json(const UnitPolicy& policy) {
    json timeouts = json::object();
    for (const auto& [phase, span] : policy.timeouts)
        timeouts[std::string(to_string(phase))] = span.count();
    return {{"timeouts_usec", timeouts},
            {"keep", policy.keep},
            {"sync", policy.sync},
            {"reserve_pids", policy.reserve_pids},
            {"pid_namespace", policy.pid_namespace},
            {"restore_at_boot", policy.restore_at_boot},
            {"reuse", policy.reuse},
            {"checkpoint_at_shutdown", policy.checkpoint_at_shutdown},
            {"plugins", plugins_to_json(policy)},
            {"tell", policy.tell.values()}};
}

UnitPolicy policy_from(const json& value) {
    UnitPolicy policy;
    for (Phase phase : all_phases())
        policy.timeouts[phase] =
            Microseconds(value.at("timeouts_usec").at(std::string(to_string(phase))).get<int64_t>());
    policy.keep = value.at("keep");
    policy.sync = value.at("sync");
    policy.reserve_pids = value.at("reserve_pids");
    policy.pid_namespace = value.value("pid_namespace", false);
    policy.restore_at_boot = value.at("restore_at_boot");
    policy.reuse = value.at("reuse");
    policy.checkpoint_at_shutdown = value.at("checkpoint_at_shutdown");
    for (const auto& [name, plugin] : value.at("plugins").items())
        policy.plugins[name] = {plugin.at("enabled").get<bool>(),
                                plugin.at("settings").get<std::map<std::string, std::string>>()};
    // The daemon has read them; what it did not understand did not pass.
    for (const auto& [key, text] : value.at("tell").get<std::map<std::string, std::string>>())
        (void)policy.tell.set(key, text);
    return policy;
}

// Runs `read` over the parsed text; the JSON library's exceptions end here.
template <typename F>
auto parse_with(const std::string& text, const char* what, F read)
    -> Result<decltype(read(std::declval<const json&>()))> {
    try {
        json value = json::parse(text);
        if (value.at("version") != kVersion)
            return fail(ErrorKind::kBadInput, what, "is of another version of checkpointd");
        return read(value);
    } catch (const json::exception& e) {
        return fail(ErrorKind::kBadInput, what, std::string("is damaged: ") + e.what());
    }
}

// Text from the outside may hold bytes that are not UTF-8, such as file names.
std::string dump(const json& value) {
    return value.dump(1, ' ', false, json::error_handler_t::replace);
}

JobRequest request_from(const json& value) {
    JobRequest request;
    request.id = value.at("job");
    request.type = value.at("type") == "restore" ? JobType::kRestore : JobType::kCheckpoint;
    request.unit = value.at("unit");
    request.image_id = value.at("image");
    request.mode = value.at("mode");
    request.sync = value.at("sync");
    request.at_gate = value.at("at_gate");
    request.at_shutdown = value.at("at_shutdown");
    request.caller_uid = value.at("caller_uid");
    request.created_usec = value.at("created_usec");
    request.store_dir = value.at("store_dir");
    request.channel = value.at("channel");
    request.policy = policy_from(value.at("policy"));
    const std::string fault = value.value("fault", "");
    if (auto parsed = parse_fault(fault); !fault.empty() && parsed) request.fault = *parsed;
    return request;
}

JobResult result_from(const json& value) {
    JobResult result;
    result.ok = value.at("ok");
    if (!result.ok) result.error = error_from(value.at("error"));
    result.image_id = value.at("image");
    result.frozen_usec = value.at("frozen_usec");
    result.total_usec = value.at("total_usec");
    result.bytes = value.at("bytes");
    result.pages = value.at("pages");
    result.main_pid = value.at("main_pid");
    result.pid_namespace = value.value("pid_namespace", "");
    for (const json& step : value.at("steps"))
        result.steps.push_back({step.at("step"), step.at("usec")});
    return result;
}

}  // namespace

std::string_view to_string(JobType type) {
    return type == JobType::kRestore ? "restore" : "checkpoint";
}

Result<Fault> parse_fault(const std::string& text) {
    const std::string remedy = "write step=NAME,action=fail|kill|hang|enospc|stop";
    const size_t comma = text.find(",action=");
    if (!text.starts_with("step=") || comma == std::string::npos || comma == 5)
        return fail(ErrorKind::kBadInput, "x-fault", "\"" + text + "\" is not a fault", remedy);
    const std::string action = text.substr(comma + 8);
    for (const ActionName& known : kActions)
        if (known.name == action) return Fault{text.substr(5, comma - 5), known.action};
    return fail(ErrorKind::kBadInput, "x-fault", "unknown action \"" + action + "\"", remedy);
}

std::string to_string(const Fault& fault) {
    for (const ActionName& known : kActions)
        if (known.action == fault.action)
            return "step=" + fault.step + ",action=" + std::string(known.name);
    return {};
}

std::string to_json(const JobRequest& request) {
    return dump({{"version", kVersion},
                 {"job", request.id},
                 {"type", to_string(request.type)},
                 {"unit", request.unit},
                 {"image", request.image_id},
                 {"mode", request.mode},
                 {"sync", request.sync},
                 {"at_gate", request.at_gate},
                 {"at_shutdown", request.at_shutdown},
                 {"caller_uid", request.caller_uid},
                 {"created_usec", request.created_usec},
                 {"store_dir", request.store_dir},
                 {"channel", request.channel},
                 {"policy", policy_to_json(request.policy)},
                 {"fault", request.fault ? to_string(*request.fault) : ""}});
}

std::string to_json(const JobResult& result) {
    json steps = json::array();
    for (const StepTime& step : result.steps)
        steps.push_back({{"step", step.step}, {"usec", step.usec}});
    json value = {{"version", kVersion},
                  {"ok", result.ok},
                  {"image", result.image_id},
                  {"frozen_usec", result.frozen_usec},
                  {"total_usec", result.total_usec},
                  {"bytes", result.bytes},
                  {"pages", result.pages},
                  {"main_pid", result.main_pid},
                  {"pid_namespace", result.pid_namespace},
                  {"steps", steps}};
    if (!result.ok) value["error"] = error_to_json(result.error);
    return dump(value);
}

std::string to_json(const ProgressMessage& message) {
    return json{{"version", kVersion},
                {"job", message.job},
                {"step", message.step},
                {"progress", message.progress},
                {"bytes", message.bytes},
                {"bytes_total", message.bytes_total},
                {"deadline_usec", message.deadline_usec}}
        .dump();
}

std::string to_json(const Error& error) { return dump(error_to_json(error)); }

Result<JobRequest> parse_request(const std::string& text) {
    return parse_with(text, kRequestFile, request_from);
}

Result<JobResult> parse_result(const std::string& text) {
    return parse_with(text, kResultFile, result_from);
}

Result<ProgressMessage> parse_progress(const std::string& text) {
    return parse_with(text, "message", [](const json& value) {
        return ProgressMessage{value.at("job"),   value.at("step"),        value.at("progress"),
                               value.at("bytes"), value.at("bytes_total"), value.at("deadline_usec")};
    });
}

Error parse_error(const std::string& text) {
    try {
        return error_from(json::parse(text));
    } catch (const json::exception&) {
        return Error{ErrorKind::kInternal, "checkpointd-worker",
                     text.empty() ? "ended without an answer" : text, {}, 0, {}};
    }
}

Result<JobRequest> load_request(const std::string& job_dir) {
    CKPT_ASSIGN(auto text, read_file(AT_FDCWD, job_dir + "/" + kRequestFile));
    return parse_request(text);
}

Result<std::optional<JobResult>> load_result(const std::string& job_dir) {
    auto text = read_file(AT_FDCWD, job_dir + "/" + kResultFile);
    if (!text && text.error().errno_code == ENOENT) return std::optional<JobResult>{};
    if (!text) return tl::unexpected(std::move(text).error());
    CKPT_ASSIGN(auto result, parse_result(*text));
    return std::optional<JobResult>{std::move(result)};
}

Result<void> store_atomically(const std::string& dir, const std::string& name,
                              const std::string& content) {
    const std::string final_path = dir + "/" + name;
    const std::string temporary = dir + "/." + name + ".new";
    CKPT_TRY(write_file(AT_FDCWD, temporary, content, 0600));
    CKPT_ASSIGN(auto fd, open_at(AT_FDCWD, temporary, O_RDONLY));
    if (fsync(fd.get()) < 0) return fail_errno(temporary, "cannot sync");
    if (rename(temporary.c_str(), final_path.c_str()) < 0)
        return fail_errno(final_path, "cannot rename into place");
    return {};
}

}  // namespace checkpointd
