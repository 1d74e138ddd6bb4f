// SPDX-License-Identifier: LGPL-2.1-or-later
//
// crctl: the command line of checkpointd.
#include <cstdio>
#include <cstdlib>

#include <fmt/core.h>

#include "cli/verbs.h"

namespace checkpointd::cli {
namespace {

// Documented in crctl(1).
int exit_status(ErrorKind kind) {
    switch (kind) {
        case ErrorKind::kBadInput: return 2;
        case ErrorKind::kNotFound: return 3;
        case ErrorKind::kConflict: return 4;
        case ErrorKind::kDenied: return 5;
        case ErrorKind::kUnsupported: return 6;
        case ErrorKind::kTimeout: return 7;
        case ErrorKind::kCancelled: return 8;
        default: return 1;
    }
}

constexpr const char* kFooter =
    "Exit status: 0 done, 1 failed, 2 wrong usage or policy, 3 not found, 4 in conflict,\n"
    "5 denied, 6 not supported, 7 timeout, 8 cancelled. See crctl(1).";

}  // namespace

int main(int argc, char** argv) {
    CommandLine line("Take running systemd units to disk, and bring them back.", "crctl",
                     CHECKPOINTD_VERSION);
    Global global;
    Action action;
    const Choose choose = [&action](Action chosen) { action = std::move(chosen); };
    line.add_flag("-j,--json", global.json, "print JSON, for programs");
    line.require_verbs(1, 1);
    line.let_options_follow_verbs();
    line.set_footer(kFooter);
    for (auto add : {add_checkpoint, add_restore, add_enable, add_list, add_show, add_explain, add_rm, add_jobs,
                     add_policy})
        add(line, global, choose);
    if (auto status = line.parse(argc, argv)) return *status == 0 ? EXIT_SUCCESS : 2;
    auto done = action();
    if (done) return EXIT_SUCCESS;
    fmt::print(stderr, "crctl: {}\n", done.error().text());
    return exit_status(done.error().kind);
}

}  // namespace checkpointd::cli

int main(int argc, char** argv) { return checkpointd::cli::main(argc, argv); }
