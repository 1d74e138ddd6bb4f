// SPDX-License-Identifier: LGPL-2.1-or-later
#include "compat/criu/options.h"

#include <charconv>
#include <getopt.h>
#include <span>

namespace checkpointd::criu {
namespace {

using Handler = Result<void> (*)(Options&, const std::string& value);

struct OptionRow {
    const char* name;
    char letter;   // 0 where there is no short form
    int argument;  // as in getopt_long(3)
    Handler handle;
    const char* help;  // nullptr: accepted, but not worth a line in --help
};

template <typename Number>
Result<Number> to_number(const std::string& text, const char* option) {
    Number number{};
    auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (failed != std::errc() || end != text.data() + text.size())
        return fail(ErrorKind::kBadInput, option, fmt::format("'{}' is not a number", text));
    return number;
}

// --external and the key of --inherit-fd: "unix[INO]" is the historical spelling of a socket.
Result<std::string> descriptor_key(const std::string& text, const char* option) {
    if (text.starts_with("unix[") && text.ends_with("]"))
        return "socket:" + text.substr(4);
    if (text.starts_with("file[") || text.starts_with("socket:[") || text.starts_with("pipe:[") ||
        text.starts_with("tty["))
        return text;
    return fail(ErrorKind::kUnsupported, option,
                fmt::format("external object '{}' is not supported", text),
                "supported are unix[INO], socket:[INO], pipe:[INO] and file[MNT:INO]");
}

Result<void> add_external(Options& options, const std::string& value) {
    CKPT_ASSIGN(std::string key, descriptor_key(value, "--external"));
    options.externals.insert(std::move(key));
    return {};
}

// fd[N]:KEY, and for objects with a path the path alone.
Result<void> add_inherited(Options& options, const std::string& value) {
    size_t end = value.find("]:");
    if (!value.starts_with("fd[") || end == std::string::npos)
        return fail(ErrorKind::kBadInput, "--inherit-fd", fmt::format("'{}' is not fd[N]:KEY", value));
    CKPT_ASSIGN(int fd, to_number<int>(value.substr(3, end - 3), "--inherit-fd"));
    CKPT_ASSIGN(std::string key, descriptor_key(value.substr(end + 2), "--inherit-fd"));
    options.inherited[std::move(key)] = fd;
    return {};
}

Result<void> set_verbosity(Options& options, const std::string& value) {
    // "-vvv" arrives as "vv", and scripts write -verbosity=0, which getopt splits after the v.
    if (value.empty() || value.find_first_not_of('v') == std::string::npos) {
        options.verbosity = static_cast<int>(value.size()) + 1;
        return {};
    }
    size_t digits = value.find_first_of("0123456789");
    if (digits == std::string::npos)
        return fail(ErrorKind::kBadInput, "--verbosity", fmt::format("'{}' is not a number", value));
    CKPT_ASSIGN(options.verbosity, to_number<int>(value.substr(digits), "--verbosity"));
    return {};
}

Result<void> set_tree(Options& options, const std::string& value) {
    CKPT_ASSIGN(options.tree, to_number<pid_t>(value, "--tree"));
    if (options.tree <= 0)
        return fail(ErrorKind::kBadInput, "--tree", fmt::format("{} is not a pid", options.tree));
    return {};
}

Result<void> set_timeout(Options& options, const std::string& value) {
    CKPT_ASSIGN(unsigned seconds, to_number<unsigned>(value, "--timeout"));
    if (seconds > 0)
        options.timeout = std::chrono::seconds(seconds);
    return {};
}

// Namespaces and control groups are joined, never made; so only that mode is honest.
Result<void> check_cgroup_mode(Options&, const std::string& value) {
    if (value == "ignore" || value == "none")
        return {};
    return fail(ErrorKind::kUnsupported, "--manage-cgroups",
                fmt::format("mode '{}' is not supported", value.empty() ? "soft" : value),
                "use --manage-cgroups=ignore: tasks are born in the caller's control group");
}

Result<void> nothing(Options&, const std::string&) {
    return {};
}

template <auto member>
Result<void> set_text(Options& options, const std::string& value) {
    options.*member = value;
    return {};
}

template <auto member>
Result<void> set_flag(Options& options, const std::string&) {
    options.*member = true;
    return {};
}

Result<void> add_feature(Options& options, const std::string& value) {
    options.features.push_back(value);
    return {};
}

constexpr int kNone = no_argument;
constexpr int kNeeds = required_argument;
constexpr int kMay = optional_argument;

constexpr OptionRow kOptions[] = {
    {"tree", 't', kNeeds, set_tree, "PID: dump this process and all its descendants"},
    {"images-dir", 'D', kNeeds, set_text<&Options::images_dir>, "DIR: where the images are"},
    {"work-dir", 'W', kNeeds, set_text<&Options::work_dir>, "DIR: where the log goes"},
    {"log-file", 'o', kNeeds, set_text<&Options::log_file>, "FILE: log, in the work directory"},
    {"leave-running", 'R', kNone, set_flag<&Options::leave_running>,
     "the tasks go on after a dump"},
    {"leave-stopped", 's', kNone, set_flag<&Options::leave_stopped>, "the tasks stay stopped"},
    {"restore-detached", 'd', kNone, set_flag<&Options::restore_detached>,
     "do not wait for the tasks"},
    {"restore-sibling", 'S', kNone, set_flag<&Options::restore_sibling>,
     "the tasks become children of our parent"},
    {"shell-job", 'j', kNone, set_flag<&Options::shell_job>, "session leader outside of the tree"},
    {"pidfile", 0, kNeeds, set_text<&Options::pid_file>, "FILE: gets the pid of the restored root"},
    {"external", 0, kNeeds, add_external, "KEY: a descriptor that is not dumped"},
    {"inherit-fd", 0, kNeeds, add_inherited, "fd[N]:KEY: what takes its place"},
    {"timeout", 0, kNeeds, set_timeout, "SECONDS: give up a dump after this long"},
    {"manage-cgroups", 0, kMay, check_cgroup_mode, "[=ignore]"},
    {"libdir", 'L', kNeeds, set_text<&Options::libdir>,
     "DIR: plugins (of checkpointd) for devices"},
    {"feature", 0, kNeeds, add_feature, "NAME: ask `check` for a single feature"},
    {"verbosity", 'v', kMay, set_verbosity, "[NUM]: 1 errors ... 4 debug"},
    {"version", 'V', kNone, set_flag<&Options::show_version>, "version"},
    {"help", 'h', kNone, set_flag<&Options::show_help>, "this text"},
    // Nothing for us to do: we have no configuration file, no ghost limit below the disk's, no
    // kerndat, and what these allow is either carried without asking or refused as a blocker.
    {"no-default-config", 0, kNone, nothing, nullptr},
    {"pre-dump-mode", 0, kNeeds, nothing, nullptr},
    {"ext-unix-sk", 0, kNone, nothing, nullptr},
    {"tcp-established", 0, kNone, nothing, nullptr},
    {"file-locks", 'l', kNone, nothing, nullptr},
    {"link-remap", 0, kNone, nothing, nullptr},
    {"ghost-limit", 0, kNeeds, nothing, nullptr},
    {"ghost-fiemap", 0, kNone, nothing, nullptr},
    {"no-ghost-fiemap", 0, kNone, nothing, nullptr},
    {"unprivileged", 0, kNone, nothing, nullptr},
    {"all", 0, kNone, nothing, nullptr},
    {"extra", 0, kNone, nothing, nullptr},
    {"experimental", 0, kNone, nothing, nullptr},
    {"display-stats", 0, kNone, nothing, nullptr},
};

constexpr int kLongBase = 1000;  // values of long options: above every letter

std::string short_options() {
    std::string out = ":";
    for (const OptionRow& row : kOptions) {
        if (row.letter == 0)
            continue;
        out += row.letter;
        out += row.argument == kMay ? "::" : row.argument == kNeeds ? ":" : "";
    }
    return out;
}

std::vector<option> long_options() {
    std::vector<option> out;
    for (size_t i = 0; i < std::size(kOptions); ++i)
        out.push_back({kOptions[i].name, kOptions[i].argument, nullptr, kLongBase + static_cast<int>(i)});
    out.push_back({});
    return out;
}

const OptionRow* find_row(int code) {
    for (size_t i = 0; i < std::size(kOptions); ++i)
        if (code == kLongBase + static_cast<int>(i) || (code == kOptions[i].letter && code != 0))
            return &kOptions[i];
    return nullptr;
}

Result<void> take_actions(Options& options, std::span<char*> words) {
    for (std::string word : words) {
        if (!options.action.empty())
            return fail(ErrorKind::kBadInput, word, "one action at a time");
        if (word != "dump" && word != "restore" && word != "check")
            return fail(ErrorKind::kUnsupported, word, "this action is not supported",
                        "supported are dump, restore and check");
        options.action = word;
    }
    return {};
}

}  // namespace

Result<Options> parse_command_line(int argc, char** argv) {
    Options options;
    std::vector<option> longs = long_options();
    std::string shorts = short_options();
    optind = 0;  // getopt(3): a fresh scan, also for the second call in a test
    for (int code; (code = getopt_long(argc, argv, shorts.c_str(), longs.data(), nullptr)) != -1;) {
        std::string word = optind > 0 && optind <= argc ? argv[optind - 1] : "";
        if (code == ':')
            return fail(ErrorKind::kBadInput, word, "needs a value");
        const OptionRow* row = code == '?' ? nullptr : find_row(code);
        if (row == nullptr)
            return fail(ErrorKind::kUnsupported, word, "option is unknown or not supported",
                        "see --help for what is");
        CKPT_TRY(row->handle(options, optarg != nullptr ? optarg : ""));
    }
    CKPT_TRY(take_actions(options, std::span(argv + optind, argv + argc)));
    if (options.action.empty() && !options.show_help && !options.show_version)
        return fail(ErrorKind::kBadInput, "command line", "names no action",
                    "use criu dump|restore|check");
    if (options.action == "dump" && options.tree == 0)
        return fail(ErrorKind::kBadInput, "dump", "needs --tree PID");
    return options;
}

std::string usage() {
    std::string out = "Usage: criu dump|restore|check [OPTION]...\n\n";
    for (const OptionRow& row : kOptions) {
        if (row.help == nullptr)
            continue;
        std::string letter = row.letter != 0 ? fmt::format("-{}, ", row.letter) : "    ";
        out += fmt::format("  {}--{:<18} {}\n", letter, row.name, row.help);
    }
    return out;
}

}  // namespace checkpointd::criu
