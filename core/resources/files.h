// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The descriptor tables of a forest: collected from outside while all tasks are stopped, and planned as
// operations on the way back.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "core/resources/file_images.h"
#include "core/resources/kind.h"
#include "core/resources/shared_ids.h"
#include "core/restore/program/plan.h"

namespace checkpointd {

// A file-backed mapping, as /proc/PID/maps tells it.
struct MappedFile {
    pid_t pid = 0;
    uint64_t start = 0;
    uint64_t end = 0;
    dev_t dev = 0;
    uint64_t inode = 0;
    std::string path;     // as in maps, " (deleted)" included
    bool writable_shared = false;  // VM_SHARED and may be written: opened read-write at restore
    bool by_plugin = false;        // nobody opens it: its path is told to a plugin
};

// A memfd whose pages the memory dump has to write as pagemap-shmem-SHMID.img.
struct WantedMemory {
    uint32_t shmid = 0;
    uint64_t size = 0;
    ScopedFd fd;
};

// Collects what the tasks of a forest have open. Every task is stopped meanwhile. Nothing in a task is
// changed. Not thread-safe.
class FileCollector {
  public:
    explicit FileCollector(CollectOptions options);
    FileCollector(const FileCollector&) = delete;
    FileCollector& operator=(const FileCollector&) = delete;
    ~FileCollector();

    // Tells which processes there are; all of them before the first collect().
    void add_task(const FileTask& task);
    // Collects descriptors, cwd and root of one process (not of a zombie), and fs-PID with its umask.
    Result<void> collect(pid_t pid);
    // Resolves what refers to others (epoll), after the last collect().
    Result<void> finish();

    // The file id for vma_entry.shmid of a mapping of a file or memfd (never of anonymous shared or
    // SysV memory: those are not files).
    Result<uint32_t> id_of_mapping(const MappedFile& mapping);
    // The file id for mm_entry.exe_file_id.
    Result<uint32_t> id_of_exe(pid_t pid);

    // Ids of the descriptor table and the fs_struct, for ids-PID / core.ids.
    Result<uint32_t> files_id(pid_t pid);
    Result<uint32_t> fs_id(pid_t pid);

    const std::vector<Error>& blockers() const;
    const std::vector<WantedMemory>& wanted_memory() const;
    const FileImages& images() const;
    // Writes files, fdinfo-*, fs-*, remap-fpath, ghost-file-*, pipes-data, fifo-data, memfd, filelocks.
    Result<void> write(int image_dir_fd) const;

  private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

// A task as the file planner sees it.
struct FilePlanTask {
    TaskPrograms programs;
    uint32_t files_id = 0;  // core.ids.files_id
    uint32_t fs_id = 0;
};

struct FilePlanOptions {
    std::map<std::string, Slot> externals;  // key -> the caller's descriptor, there when the agent runs
    Slot image_dir;                         // descriptor of the image directory in the agent
    // A /proc in which the agent finds itself: not always the one of its mount namespace. Unset: that one.
    std::optional<Slot> proc = {};
    PlanClocks clocks;
    std::function<bool(const std::string& path)> is_free;  // see FilePlanContext; unset: never
    // Emits what fills a memfd; from the memory restore. `size` in bytes.
    std::function<Result<void>(uint32_t shmid, uint64_t size, Slot fd, Program& agent)> fill_memory;
    // Where the agent has shared anonymous memory open that it made already; unset: nowhere.
    std::function<std::optional<Slot>(uint32_t shmid)> segment;
};

// What the agent opens (kMoveHigh) has to lie at or above this number. The one below it is the planner's
// scratch number, and all that tasks use are below that.
Result<uint32_t> descriptor_floor(const FileImages& images);

// The restore half. Construct, plan(), then ask for slots.
class FilePlanner {
  public:
    // All arguments are borrowed and must outlive the planner. Tasks in an order in which the first one
    // that has a table installs it; others with the same files_id share it by CLONE_FILES.
    FilePlanner(const FileImages& images, std::vector<FilePlanTask> tasks, Plan& plan, Program& agent,
                FilePlanOptions options);
    ~FilePlanner();

    // Emits into the agent: opening of every file. Into each stage: dup3 of every descriptor to its
    // number. Into each late program: pidfds, epoll contents, timers, locks, owners. The caller closes
    // everything from descriptor_floor() up after the stage programs have run, and empties [0, floor)
    // before. The agent has to be gone or have closed its descriptors before the tasks run: it holds
    // both ends of every pipe. Blockers are answered all at once.
    Result<void> plan();

    // Where the agent has a file open: for mappings (vma shmid), exe. Opened read-only or read-write as
    // the record says.
    Result<Slot> slot_of_file(uint32_t file_id);
    // fchdir, chroot and umask of a task. Emit where no path is opened any more.
    Result<void> plan_fs(const FilePlanTask& task, Program& program);
    // Whether the task fills its table of descriptors; one that shares that of an earlier task does not.
    bool fills_table(pid_t pid) const;
    // Closes all numbers below `floor` but those that the task's table has. Emits nothing for a task that shares the
    // table of an earlier one.
    void close_strangers(const FilePlanTask& task, uint32_t floor, Program& program);

  private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

// Reads all images that FileImages holds. `files_ids` and `pids` say which tables and fs images.
Result<FileImages> read_file_images(int image_dir_fd, const std::set<uint32_t>& files_ids,
                                    const std::set<pid_t>& pids);
Result<void> write_file_images(const FileImages& images, int image_dir_fd);

}  // namespace checkpointd
