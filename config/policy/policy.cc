// SPDX-License-Identifier: LGPL-2.1-or-later
#include "config/policy/policy.h"

#include <algorithm>
#include <array>
#include <dirent.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <functional>
#include <memory>
#include <set>

#include <fmt/ranges.h>
#include <yaml-cpp/yaml.h>

#include "core/base/io.h"

namespace checkpointd {
namespace {

struct PhaseInfo {
    Phase phase;
    std::string_view name;
    Microseconds timeout;
};

using std::chrono::minutes;
using std::chrono::seconds;

// The built-in values; config/dist/policy.yaml says them again, where an administrator looks.
constexpr std::array<PhaseInfo, kPhaseCount> kPhases{{
    {Phase::kPrepare, "prepare", seconds(30)},
    {Phase::kTell, "tell", seconds(10)},
    {Phase::kFreeze, "freeze", seconds(10)},
    {Phase::kCollect, "collect", seconds(30)},
    {Phase::kDevices, "devices", minutes(10)},
    {Phase::kMemory, "memory", minutes(10)},
    {Phase::kCommit, "commit", minutes(2)},
    {Phase::kStop, "stop", seconds(90)},
    {Phase::kStart, "start", seconds(90)},
    {Phase::kRebuild, "rebuild", minutes(10)},
    {Phase::kTotal, "total", minutes(30)},
}};

constexpr size_t kFileLimit = 1u << 20;

// Reads one file; gathers everything that is wrong with it.
class Reader {
  public:
    Reader(Policy& policy, std::string file) : policy_(policy), file_(std::move(file)) {}

    void document(const YAML::Node& root);
    std::vector<Error> take_errors() { return std::move(errors_); }

  private:
    using Handler = std::function<void(const std::string& key, const YAML::Node& value)>;
    using Table = std::map<std::string, Handler>;

    void error(const YAML::Node& at, std::string message, std::string remedy = {});
    // Calls `each` for every key of a mapping; a key that stands twice is an error.
    void each_key(const YAML::Node& node, const std::string& what,
                  const std::function<void(const std::string&, const YAML::Node& key,
                                           const YAML::Node& value)>& each);
    void by_table(const YAML::Node& node, const std::string& what, const Table& table);

    void section(const YAML::Node& node, const std::string& what, PolicySection& section);
    void units(const YAML::Node& node);
    void timeouts(const YAML::Node& node, PolicySection& section);
    void plugins(const YAML::Node& node, PolicySection& section);
    void plugin(const YAML::Node& node, const std::string& name, PluginPolicy& plugin);
    void tell(const YAML::Node& node, PolicySection& section);
    std::optional<Microseconds> duration(const YAML::Node& node);
    std::optional<bool> boolean(const YAML::Node& node, const std::string& key);
    std::optional<unsigned> number(const YAML::Node& node, const std::string& key, unsigned limit);
    // One of two words: is it the second?
    std::optional<bool> choice(const YAML::Node& node, const std::string& key, const char* first,
                               const char* second);

    Policy& policy_;
    std::string file_;
    std::vector<Error> errors_;
};

std::string position(const std::string& file, const YAML::Mark& mark) {
    return fmt::format("{}:{}:{}", file, mark.line + 1, mark.column + 1);
}

void Reader::error(const YAML::Node& at, std::string message, std::string remedy) {
    errors_.push_back(Error{ErrorKind::kBadInput, position(file_, at.Mark()), std::move(message),
                            std::move(remedy), 0, {}});
}

void Reader::each_key(const YAML::Node& node, const std::string& what,
                      const std::function<void(const std::string&, const YAML::Node&,
                                               const YAML::Node&)>& each) {
    if (!node.IsMap()) return error(node, fmt::format("{} must be a mapping (key: value)", what));
    std::set<std::string> seen;
    for (const auto& entry : node) {
        if (!entry.first.IsScalar()) {
            error(entry.first, fmt::format("a key of {} must be a plain word", what));
            continue;
        }
        std::string key = entry.first.Scalar();
        if (!seen.insert(key).second)
            error(entry.first, fmt::format("\"{}\" stands twice in {}", key, what));
        else
            each(key, entry.first, entry.second);
    }
}

void Reader::by_table(const YAML::Node& node, const std::string& what, const Table& table) {
    each_key(node, what, [&](const std::string& key, const YAML::Node& at, const YAML::Node& value) {
        auto found = table.find(key);
        if (found != table.end()) return found->second(key, value);
        std::vector<std::string> allowed;
        for (const auto& [name, handler] : table) allowed.push_back(name);
        error(at, fmt::format("unknown key \"{}\" in {}", key, what),
              fmt::format("allowed: {}", fmt::join(allowed, ", ")));
    });
}

void Reader::document(const YAML::Node& root) {
    if (root.IsNull()) return;  // an empty file, or nothing but comments
    by_table(root, "the policy",
             {{"version", [this](auto& key, auto& node) { number(node, key, 1); }},
              {"idle-timeout",
               [this](auto&, auto& node) {
                   if (auto span = duration(node)) policy_.idle_timeout = *span;
               }},
              {"defaults",
               [this](auto& key, auto& node) { section(node, key, policy_.defaults); }},
              {"units", [this](auto&, auto& node) { units(node); }}});
}

void Reader::units(const YAML::Node& node) {
    each_key(node, "units", [&](const std::string& key, const YAML::Node& at, const YAML::Node& value) {
        if (key.empty()) return error(at, "an empty pattern matches no unit");
        PatternSection entry{key, {}};
        section(value, fmt::format("units.\"{}\"", key), entry.section);
        policy_.units.push_back(std::move(entry));
    });
}

void Reader::section(const YAML::Node& node, const std::string& what, PolicySection& section) {
    by_table(node, what,
             {{"timeouts", [&](auto&, auto& value) { timeouts(value, section); }},
              {"plugins", [&](auto&, auto& value) { plugins(value, section); }},
              {"tell", [&](auto&, auto& value) { tell(value, section); }},
              {"restore-at-boot",
               [&](auto& key, auto& value) {
                   if (auto flag = boolean(value, key)) section.restore_at_boot = flag;
               }},
              {"reuse",
               [&](auto& key, auto& value) {
                   if (auto flag = choice(value, key, "never", "always")) section.reuse = flag;
               }},
              {"pid-taken",
               [&](auto& key, auto& value) {
                   if (auto flag = choice(value, key, "refuse", "namespace"))
                       section.pid_namespace = flag;
               }},
              {"checkpoint-at-shutdown",
               [&](auto& key, auto& value) {
                   if (auto flag = boolean(value, key)) section.checkpoint_at_shutdown = flag;
               }},
              {"sync",
               [&](auto& key, auto& value) {
                   if (auto flag = boolean(value, key))
                       section.sync = flag;
               }},
              {"reserve-pids",
               [&](auto& key, auto& value) {
                   if (auto flag = boolean(value, key))
                       section.reserve_pids = flag;
               }},
              {"keep", [&](auto& key, auto& value) {
                   if (auto count = number(value, key, 1000))
                       section.keep = count;
               }}});
}

void Reader::timeouts(const YAML::Node& node, PolicySection& section) {
    Table table;
    for (const PhaseInfo& info : kPhases)
        table[std::string(info.name)] = [&, phase = info.phase](auto&, auto& value) {
            if (auto span = duration(value)) section.timeouts[phase] = *span;
        };
    by_table(node, "timeouts", table);
}

void Reader::plugins(const YAML::Node& node, PolicySection& section) {
    each_key(node, "plugins", [&](const std::string& name, const YAML::Node&, const YAML::Node& value) {
        if (value.IsMap())
            return plugin(value, name, section.plugins[name]);
        if (auto flag = boolean(value, name)) section.plugins[name].enabled = *flag;
    });
}

void Reader::plugin(const YAML::Node& node, const std::string& name, PluginPolicy& plugin) {
    each_key(node, fmt::format("plugins.{}", name),
             [&](const std::string& key, const YAML::Node&, const YAML::Node& value) {
                 if (key != "enabled" && value.IsScalar())
                     plugin.settings[key] = value.Scalar();
                 else if (key != "enabled")
                     error(value, fmt::format("\"{}\" must be a plain word", key));
                 else if (auto flag = boolean(value, key))
                     plugin.enabled = *flag;
             });
}

void Reader::tell(const YAML::Node& node, PolicySection& section) {
    each_key(
        node, "tell", [&](const std::string& key, const YAML::Node& at, const YAML::Node& value) {
            auto set = section.tell.set(key, value.IsScalar() ? value.Scalar() : std::string());
            if (!set)
                error(at, fmt::format("{} {}", set.error().object, set.error().message),
                      set.error().remedy);
        });
}

std::optional<Microseconds> Reader::duration(const YAML::Node& node) {
    if (!node.IsScalar()) {
        error(node, "a duration is wanted here", "write it as in \"5min 20s\" or \"infinity\"");
        return std::nullopt;
    }
    auto span = parse_duration(node.Scalar());
    if (span && *span > Microseconds(0)) return *span;
    if (span)
        error(node, "a timeout of zero would end every job at once", "\"infinity\" switches it off");
    else
        error(node, span.error().object + " is " + span.error().message, span.error().remedy);
    return std::nullopt;
}

std::optional<bool> Reader::boolean(const YAML::Node& node, const std::string& key) {
    if (node.IsScalar()) {
        const std::string& text = node.Scalar();
        if (text == "yes" || text == "true" || text == "on") return true;
        if (text == "no" || text == "false" || text == "off") return false;
    }
    error(node, fmt::format("\"{}\" must be yes or no", key));
    return std::nullopt;
}

std::optional<bool> Reader::choice(const YAML::Node& node, const std::string& key,
                                   const char* first, const char* second) {
    if (node.IsScalar() && node.Scalar() == second) return true;
    if (node.IsScalar() && node.Scalar() == first) return false;
    error(node, fmt::format("\"{}\" must be {} or {}", key, first, second));
    return std::nullopt;
}

std::optional<unsigned> Reader::number(const YAML::Node& node, const std::string& key,
                                       unsigned limit) {
    const std::string text = node.IsScalar() ? node.Scalar() : std::string();
    bool digits = !text.empty() && text.size() <= 6 &&
                  std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
    unsigned value = digits ? static_cast<unsigned>(std::stoul(text)) : 0;
    if (digits && value <= limit) return value;
    error(node, fmt::format("\"{}\" must be a number from 0 to {}", key, limit));
    return std::nullopt;
}

void lay_over(UnitPolicy& result, const PolicySection& section) {
    for (const auto& [phase, span] : section.timeouts) result.timeouts[phase] = span;
    for (const auto& [name, plugin] : section.plugins) result.plugins[name].lay_over(plugin);
    if (section.keep) result.keep = *section.keep;
    if (section.sync) result.sync = *section.sync;
    if (section.reserve_pids)
        result.reserve_pids = *section.reserve_pids;
    if (section.pid_namespace)
        result.pid_namespace = *section.pid_namespace;
    result.tell.lay_over(section.tell);
    if (section.restore_at_boot) result.restore_at_boot = *section.restore_at_boot;
    if (section.reuse) result.reuse = *section.reuse;
    if (section.checkpoint_at_shutdown) result.checkpoint_at_shutdown = *section.checkpoint_at_shutdown;
}

// Parses; yaml-cpp's exceptions end here.
Result<void> read_document(Reader& reader, const std::string& text, const std::string& file) {
    try {
        reader.document(YAML::Load(text));
        return {};
    } catch (const YAML::Exception& e) {
        return fail(ErrorKind::kBadInput, position(file, e.mark), "not valid YAML: " + e.msg);
    }
}

// NAME → path of every *.yaml in DIR/policy.d.
void list_fragments(const std::string& dir, std::map<std::string, std::string>& found) {
    const std::string path = dir + "/policy.d";
    std::unique_ptr<DIR, int (*)(DIR*)> handle(opendir(path.c_str()), closedir);
    if (!handle) return;
    while (const dirent* entry = readdir(handle.get())) {
        std::string name = entry->d_name;
        if (name.size() > 5 && name.front() != '.' && name.ends_with(".yaml"))
            found[name] = path + "/" + name;
    }
}

Result<void> merge_file(Policy& policy, const std::string& path) {
    auto text = read_file(AT_FDCWD, path, kFileLimit);
    if (!text && text.error().errno_code == ENOENT) return {};
    if (!text) return tl::unexpected(std::move(text).error());
    CKPT_TRY(merge_policy(policy, *text, path));
    policy.files.push_back(path);
    return {};
}

// A name may hold anything.
std::string quoted(const std::string& text) {
    YAML::Emitter emitter;
    emitter << YAML::DoubleQuoted << text;
    return emitter.c_str();
}

}  // namespace

std::string_view to_string(Phase phase) { return kPhases[static_cast<size_t>(phase)].name; }

const std::vector<Phase>& all_phases() {
    static const std::vector<Phase> phases = [] {
        std::vector<Phase> all;
        for (const PhaseInfo& info : kPhases) all.push_back(info.phase);
        return all;
    }();
    return phases;
}

UnitPolicy Policy::for_unit(const std::string& unit) const {
    UnitPolicy result;
    for (const PhaseInfo& info : kPhases) result.timeouts[info.phase] = info.timeout;
    lay_over(result, defaults);
    for (const PatternSection& entry : units)
        if (fnmatch(entry.pattern.c_str(), unit.c_str(), 0) == 0) lay_over(result, entry.section);
    return result;
}

Result<void> merge_policy(Policy& policy, const std::string& text, const std::string& file) {
    Policy merged = policy;  // a file with errors must leave nothing behind
    Reader reader(merged, file);
    CKPT_TRY(read_document(reader, text, file));
    CKPT_TRY(all_blockers(file, "the policy has errors", reader.take_errors()));
    policy = std::move(merged);
    return {};
}

Result<Policy> load_policy(const std::string& vendor_dir, const std::string& admin_dir) {
    Policy policy;
    CKPT_TRY(merge_file(policy, vendor_dir + "/policy.yaml"));
    CKPT_TRY(merge_file(policy, admin_dir + "/policy.yaml"));
    std::map<std::string, std::string> fragments;
    list_fragments(vendor_dir, fragments);
    list_fragments(admin_dir, fragments);
    for (const auto& [name, path] : fragments) CKPT_TRY(merge_file(policy, path));
    return policy;
}

bool Policy::ever_at_shutdown() const {
    auto asks = [](const PolicySection& section) { return section.checkpoint_at_shutdown.value_or(false); };
    return asks(defaults) || std::any_of(units.begin(), units.end(),
                                         [&](const PatternSection& unit) { return asks(unit.section); });
}

std::string print_policy(const UnitPolicy& policy) {
    std::string text = "defaults:\n  timeouts:\n";
    for (Phase phase : all_phases())
        text += fmt::format("    {}: {}\n", to_string(phase),
                            format_duration(policy.timeout(phase)));
    auto yes_no = [](bool on) { return on ? "yes" : "no"; };
    text += fmt::format("  keep: {}\n  sync: {}\n  reserve-pids: {}\n", policy.keep, yes_no(policy.sync),
                        yes_no(policy.reserve_pids));
    text += fmt::format("  pid-taken: {}\n", policy.pid_namespace ? "namespace" : "refuse");
    text += fmt::format("  restore-at-boot: {}\n  reuse: {}\n  checkpoint-at-shutdown: {}\n",
                        yes_no(policy.restore_at_boot), policy.reuse ? "always" : "never",
                        yes_no(policy.checkpoint_at_shutdown));
    if (!policy.plugins.empty()) text += "  plugins:\n";
    for (const auto& [name, plugin] : policy.plugins) {
        text += fmt::format("    {}:\n", quoted(name));
        if (plugin.enabled)
            text += fmt::format("      enabled: {}\n", yes_no(*plugin.enabled));
        for (const auto& [key, value] : plugin.settings)
            text += fmt::format("      {}: {}\n", quoted(key), quoted(value));
    }
    const auto tell = policy.tell.values();
    if (!tell.empty())
        text += "  tell:\n";
    for (const auto& [key, value] : tell)
        text += fmt::format("    {}: {}\n", key, quoted(value));
    return text;
}

}  // namespace checkpointd
