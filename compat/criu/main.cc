// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The `criu` command: what runtimes, scripts and CRIU's own test suite call, over our engine.
#include <cstdio>

#include "compat/criu/actions.h"

namespace checkpointd::criu {
namespace {

int report(const Error& error) {
    std::fprintf(stderr, "Error: %s\n", error.text().c_str());
    return 1;
}

int run_logged(const Options& options) {
    auto log = Log::open(options);
    if (!log)
        return report(log.error());
    auto done = options.action == "dump" ? dump(options, *log) : restore(options, *log);
    if (done)
        return 0;
    log->error(done.error());
    return options.log_file.empty() ? 1 : report(done.error());
}

int run_check(const Options& options) {
    auto done = check(options);
    if (!done)
        return options.verbosity > 0 ? report(done.error()) : 1;
    if (options.verbosity > 0)
        std::puts("Looks good.");
    return 0;
}

int run(int argc, char** argv) {
    auto options = parse_command_line(argc, argv);
    if (!options)
        return report(options.error());
    if (options->show_help)
        return std::fputs(usage().c_str(), stdout) < 0;
    if (options->show_version) {
        // Callers parse this line and compare it with CRIU's releases: the one whose images we write.
        std::puts("Version: 4.2\nEngine: checkpointd " CHECKPOINTD_VERSION);
        return 0;
    }
    return options->action == "check" ? run_check(*options) : run_logged(*options);
}

}  // namespace
}  // namespace checkpointd::criu

int main(int argc, char** argv) {
    return checkpointd::criu::run(argc, argv);
}
