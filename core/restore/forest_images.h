// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"
#include "core/resources/user_namespace.h"
#include "images/image_dir.h"
#include "images/proto/core.pb.h"
#include "images/proto/inventory.pb.h"
#include "images/proto/memory.pb.h"
#include "images/proto/namespaces.pb.h"
#include "images/proto/security.pb.h"
#include "images/proto/tasks.pb.h"

namespace checkpointd {

// A pages file and the runs of pages in it.
struct PageRuns {
    uint32_t pages_id = 0;
    std::vector<images::pagemap_entry> runs;
};

struct TaskRecord {
    images::pstree_entry entry;
    images::core_entry core;                   // of the main thread, with `tc`
    std::map<pid_t, images::core_entry> threads;  // the others
    images::task_kobj_ids_entry ids;
    images::mm_entry mm;
    std::vector<images::vma_entry> guards;  // ranges of MADV_GUARD_INSTALL, taken out of mm
    images::process_extra_entry extra;      // empty where the image has none
    PageRuns pages;

    pid_t pid() const { return static_cast<pid_t>(entry.pid()); }
    bool zombie() const;
    bool stopped() const;
    std::string name() const { return core.tc().comm(); }
    std::string object() const;  // "pid 7 (redis-server)"
    const images::thread_extra_entry& thread_extra(pid_t tid) const;  // perhaps an empty one
};

// All of an image directory that concerns tasks and their memory, read and checked for consistency: a
// planner may rely on what is documented here.
//   * PIDs and TIDs are positive and unique; the first thread of a task is its PID;
//   * a living task has core, mm and ids; mappings are page aligned, ascending, disjoint, in user memory.
struct ForestImages {
    images::inventory_entry inventory;
    std::vector<TaskRecord> tasks;  // parents before children
    images::seccomp_entry seccomp;
    std::optional<images::timens_entry> clocks;
    UserNamespace user_namespace;

    const TaskRecord* find(pid_t pid) const;
};

Result<ForestImages> read_forest(const images::ImageDir& dir);
// Runs of pages of a shared anonymous segment, addresses counted from its start.
Result<PageRuns> read_shared_pages(const images::ImageDir& dir, uint64_t shmid);

inline constexpr uint64_t kUserMemoryEnd = (uint64_t{1} << 47) - 4096;

}  // namespace checkpointd
