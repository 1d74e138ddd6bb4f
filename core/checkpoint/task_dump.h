// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Collects everything about one stopped process. Nothing is written here.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"
#include "core/inject/seize.h"
#include "core/kernel/proc_stat.h"
#include "core/kernel/proc_status.h"
#include "core/resources/address_space.h"
#include "core/resources/seccomp.h"
#include "images/proto/core.pb.h"
#include "images/proto/inventory.pb.h"
#include "images/proto/tasks.pb.h"

namespace checkpointd {

// The images of one process.
struct TaskImages {
    pid_t pid = 0;        // as we see it
    pid_t image_pid = 0;  // as its own PID namespace sees it; names the files
    bool zombie = false;
    images::pstree_entry tree;
    std::vector<images::core_entry> cores;  // one for each thread, in the order of tree.threads
    images::task_kobj_ids_entry ids;
    AddressSpace memory;
    images::process_extra_entry extra;
    int mem_fd = -1;  // borrowed from the seized process
};

// PIDs as the forest's own namespace numbers them, of processes and threads.
class PidMap {
  public:
    void add(const ProcStatus& status);
    // 0 for what is not in the forest.
    pid_t image_pid(pid_t pid) const;

  private:
    std::map<pid_t, pid_t> pids_;
};

struct TaskDumpContext {
    const PidMap& pids;
    SeccompCollector& seccomp;
    AddressSpaceContext& memory;
    std::vector<Error>& blockers;
    std::optional<std::string> cgroup;  // the dumped cgroup's path as /proc/PID/cgroup spells it
};

// What is read from outside: /proc and ptrace. `out` gets cores (without what only the task knows),
// tree, memory and extra.
Result<void> observe_task(const SeizedProcess& process, TaskDumpContext& context, TaskImages& out);
// What only the task itself can answer, by remote system calls in each of its threads.
Result<void> ask_task(SeizedProcess& process, TaskDumpContext& context, TaskImages& out);
Result<void> observe_zombie(const SeizedProcess& process, TaskDumpContext& context, TaskImages& out);

}  // namespace checkpointd
