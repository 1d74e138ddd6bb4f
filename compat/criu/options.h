// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <chrono>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"

namespace checkpointd::criu {

// What a `criu` command line asks for. Only what we act on is here: an option that is known to change
// nothing for us is accepted by the table in options.cc, any other is refused by its name.
struct Options {
    std::string action;  // "dump", "restore", "check"; empty with show_version or show_help
    std::string images_dir = ".";
    std::string work_dir;  // empty: the images directory
    std::string log_file;  // empty: standard error
    std::string pid_file;
    std::string libdir;  // of plugins; empty: not named
    pid_t tree = 0;
    bool leave_running = false;
    bool leave_stopped = false;
    bool shell_job = false;
    bool restore_detached = false;
    bool restore_sibling = false;
    bool show_version = false;
    bool show_help = false;
    int verbosity = 2;
    std::optional<std::chrono::seconds> timeout;
    std::set<std::string> externals;           // descriptor keys of a dump: "socket:[12]", "file[mnt:ino]"
    std::map<std::string, int> inherited;      // descriptor keys of a restore, and our descriptors
    std::vector<std::string> features;         // names asked of `check --feature`
};

// Reads a command line as CRIU 4.x does: the action stands before, between or behind the options, -v takes
// its number glued on. Errors name the option and say whether it is unknown or not supported.
Result<Options> parse_command_line(int argc, char** argv);

// The text of --help.
std::string usage();

}  // namespace checkpointd::criu
