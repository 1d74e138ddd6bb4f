// SPDX-License-Identifier: LGPL-2.1-or-later
//
// From a unit's name to what the engine needs to know about it, and what stands in the way.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <sys/types.h>
#include <vector>

#include "config/policy/tell.h"
#include "core/base/error.h"
#include "units/origin.h"
#include "units/subgroups.h"
#include "units/systemd.h"

namespace checkpointd {

// What a descriptor that belongs to the unit's stage, not to the unit itself, is tied to.
enum class ExternalKind {
    kStdio,    // descriptor 0, 1 or 2 as systemd made it: stage descriptor `index`
    kListen,   // socket held by PID 1 too: the index-th of LISTEN_FDS, stage descriptor 3 + index
    kJournal,  // another connected stream to the journal: a duplicate of stage descriptor 1 will do
};

// One open file description that is not carried but taken from the stage on the way back. `key` is the
// engine's name of it: "socket:[INODE]" or "file[MNT_ID:INODE]" (hexadecimal, as CRIU's --external).
struct UnitExternal {
    std::string key;
    ExternalKind kind = ExternalKind::kStdio;
    unsigned index = 0;
    std::string name;     // LISTEN_FDNAMES entry of a kListen; empty where the socket was moved
    std::string address;  // of a kListen, as describe_socket() tells it

    bool operator==(const UnitExternal&) const = default;
};

// A directory that systemd removes when the unit stops and makes anew, empty, when it starts: its content
// travels in an archive of ours. `path` is as the unit sees it.
struct UnitDirectory {
    std::string path;
    bool operator==(const UnitDirectory&) const = default;
};

// What becomes of a unit that goes to disk.
enum class WayDown {
    kStop,      // it ends cleanly and is inactive
    kSuspend,   // it stays active, with a placeholder for its processes
    kSnapshot,  // it goes on
};
// "stop", "suspend", "snapshot"; kBadInput for anything else.
Result<WayDown> parse_way_down(std::string_view text);

// Everything about a running unit that its image must remember, and what finds its processes.
struct UnitFacts {
    std::string id;             // canonical name
    std::string type;           // simple, exec, idle, notify, notify-reload, forking, oneshot; "scope"
    std::string fragment_path;
    bool transient = false;
    std::string definition;     // of a transient unit: the text of its files
    std::string description;
    std::string slice;          // of a scope, and who is asked to stop it
    std::string controller;
    std::string cgroup;         // "/system.slice/foo.service", relative to PID 1's cgroup root
    std::string cgroup_dir;     // the same in the file system: "/sys/fs/cgroup/system.slice/foo.service"
    pid_t main_pid = 0;
    pid_t namespace_init = 0;    // of a PID namespace of ours (pid_namespace.h) in which it lives just now; or 0
    std::string user;
    std::string notify_access;
    uint64_t watchdog_usec = 0;  // 0: systemd waits for no messages to its watchdog
    std::string status_text;     // what the program last said of itself (STATUS=)
    std::string pid_file;        // absolute, or empty
    std::string pid_file_content;
    std::string syslog_identifier;
    std::vector<ExecCommand> exec_start;
    size_t exec_index = 0;       // of those, the one that runs; not 0 for a oneshot only
    std::string only_in_place;   // of a suspended unit: why it could not be restored after a stop; or empty
    std::vector<UnitDirectory> directories;
    std::vector<UnitExternal> externals;
    std::vector<Subgroup> subgroups;  // Delegate=
    TellSettings tell;                // what its files say, and over it the policy
    UnitOrigin origin;                // taken when the unit stands still

    bool is_scope() const { return type == "scope"; }
};

// Resolves a running service or scope. All reasons why it cannot be carried that way come back in one error (its
// causes), and nothing was changed. `stop_is_queued`: a stop job of the unit is expected, and waits for us.
Result<UnitFacts> resolve_unit(Systemd& systemd, const std::string& name,
                               WayDown way = WayDown::kStop,
                               const TellSettings& tell_by_policy = {}, bool stop_is_queued = false);

// Why this unit must go on by all means: while it stands still, nobody could end the job, or the whole
// machine would wait. Empty for all others.
std::string_view why_never_stopped(std::string_view unit);

// The externals of the tasks in a cgroup; called again when the forest stands still, because descriptors
// may have changed since resolve_unit(). `pids`: all processes of the unit, the main one among them.
Result<std::vector<UnitExternal>> find_externals(pid_t main_pid,
                                                 const std::vector<pid_t>& pids);

// "TYPE PROTOCOL ADDRESS-IN-HEX": what two sockets have in common that stand for the same ListenStream=.
Result<std::string> describe_socket(int fd);

// The entries of a process's environment as it was started with (/proc/PID/environ) that belong to
// sd_listen_fds(3): one name per descriptor 3, 4, ...
std::vector<std::string> listen_names(std::string_view environ_text);

// The facts as JSON for the image (an extra file of ours) and back. Unknown members are ignored.
std::string to_json(const UnitFacts& facts);
Result<UnitFacts> unit_facts_from_json(std::string_view text);

}  // namespace checkpointd
