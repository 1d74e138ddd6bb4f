// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What one kind of open file has to offer: how it is recognised, how its state becomes a record of
// files.img, and which operations make it again. A kind is one file (`pipe.cc`) and one line in
// `kinds.cc`.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <ctime>
#include <fcntl.h>
#include <functional>
#include <sys/stat.h>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "core/resources/file_images.h"
#include "core/restore/program/plan.h"

namespace checkpointd {

// Who gets SIGIO (F_SETOWN_EX, F_SETSIG), as the forest's PID namespace numbers it.
struct FileOwner {
    uint32_t uid = 0;
    uint32_t euid = 0;
    uint32_t signum = 0;
    uint32_t pid_type = 0;
    uint32_t pid = 0;  // 0: nobody
};

// The facts of one descriptor of a stopped task, and a duplicate that shares its struct file: fcntl,
// lseek(SEEK_CUR), tee, recv(MSG_PEEK) and ioctl on `copy` see what the task would see. Nothing that is
// consumed from it may be lost.
struct OpenFile {
    pid_t pid = 0;
    int fd = -1;             // number in the task; -1 for a mapping, cwd, root or exe
    int copy = -1;           // our duplicate, borrowed; may be O_PATH
    struct stat st {};
    unsigned flags = 0;      // as fdinfo tells them (with O_LARGEFILE), without O_CLOEXEC
    uint64_t pos = 0;
    int mnt_id = -1;
    std::string link;        // text of /proc/PID/fd/N: a path from the root of the task's mount
                             // namespace, "pipe:[7]", "anon_inode:[eventfd]" ...
    std::string fdinfo;      // whole text of /proc/PID/fdinfo/N; empty where fd is -1
    FileOwner owner;
    std::string object;      // "pid 7 fd 5 (/var/log/x)", for errors

    bool is_anon(std::string_view name) const;  // link is "anon_inode:NAME" or "anon_inode:[NAME]"
    unsigned filesystem() const;                // statfs f_type, asked of the kernel
};

// One process of the forest as the collector knows it.
struct FileTask {
    pid_t pid = 0;      // as we see it
    pid_t ns_pid = 0;   // as it sees itself; what images hold
    int pidfd = -1;     // borrowed
};

// Where paths of a mount namespace can be looked up from outside. Borrowed.
struct NamespaceRoot {
    int fd = -1;         // O_PATH; -1 where there is none
    std::string prefix;  // what `fd` is within the namespace, where only a part can be seen: "/jail"
};

struct CollectOptions {
    std::set<std::string> externals;
    uint64_t ghost_limit = 64u << 20;  // largest deleted file that is carried, in bytes
    // Asked before any kind is, but for externals: the name of the plugin whose the file is, which has dumped it under `id`.
    // Unset: there is none.
    std::function<Result<std::optional<std::string>>(const struct OpenFile& file, uint32_t id)> ask_plugins;
    // A pipe whose other end is held outside of the forest is dumped as one with a missing end; the
    // restore has to be given it. Without this it is a blocker.
    bool outside_pipes = false;
};

// What a kind may use while it dumps.
class FileDumpContext {
  public:
    virtual ~FileDumpContext() = default;
    // Something that cannot be carried; the collecting goes on so that all are found.
    virtual void blocker(Error error) = 0;
    // A fresh id for files, pipes, ghosts, memfd inodes ...
    virtual uint32_t new_id() = 0;
    // Everything that will be written; a kind adds its side images here.
    virtual FileImages& images() = 0;
    // The caller of the restore provides the object with this key ("file[2f:11]", "socket:[7]").
    virtual bool is_external(const std::string& key) const = 0;
    // The process of the forest with this PID (as we see it, or null).
    virtual const FileTask* task(pid_t pid) const = 0;
    // Where paths of the task's mount namespace are looked up.
    virtual NamespaceRoot namespace_root(pid_t pid) = 0;
    virtual const CollectOptions& options() const = 0;
    // Adds a record for something that has no descriptor of its own (the path of a FIFO).
    virtual Result<uint32_t> add_file(const OpenFile& file, const struct FileKind& kind) = 0;
    // Notes a lock that descriptor `file` shows; one that is known already is left out.
    virtual void note_lock(const OpenFile& file, uint32_t file_id,
                           const images::file_lock_entry& lock) = 0;
    // Directories to resolve file handles of a filesystem (kernel's dev_t) in, as the task sees them.
    // Borrowed.
    virtual std::vector<int> mounts_of(pid_t pid, uint32_t kernel_dev) = 0;
    // Runs when all descriptors of all tasks are known.
    virtual void when_collected(std::function<Result<void>(class FileTables&)> finish) = 0;
    // A mapped or open memfd's contents are wanted under this shmid. `copy` is duplicated.
    virtual Result<void> want_memory(uint32_t shmid, uint64_t size, int copy) = 0;
};

// All descriptors of all tasks, for kinds that refer to others (epoll).
class FileTables {
  public:
    virtual ~FileTables() = default;
    struct Descriptor {
        uint32_t number;
        uint32_t file_id;
        dev_t dev;
        ino_t ino;
    };
    // Tasks whose descriptors were collected, in that order.
    virtual std::vector<pid_t> pids() const = 0;
    // Descriptors of a task, in order of their numbers. Empty for one that shares an earlier task's.
    virtual const std::vector<Descriptor>& of(pid_t pid) const = 0;
};

// Programs of one task in which descriptors have their final numbers.
struct TaskPrograms {
    pid_t pid = 0;             // as in the images
    Program* stage = nullptr;  // before the memory is replaced, right after installation
    // When every task exists and every mapping is made, with the task's final credentials or before:
    // what needs another task, or must not run on while memory is read (timers). Only numbers of the
    // task's own descriptors may be used, no slot of the agent. May be the same as `stage` in tests.
    Program* late = nullptr;
    // After every other descriptor of the task is closed: what a close() of the same file undoes (POSIX
    // locks). Only numbers may be used. Null: `late`.
    Program* last = nullptr;
    // After `stage`, and still before the memory is replaced: files that plugins make. Null: `stage`.
    Program* plugins = nullptr;
};

// Flags of an open file that can be set at any time.
inline constexpr unsigned kSettableFlags = O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME | O_ASYNC;

// Where one file has its descriptors.
struct Installed {
    TaskPrograms* task;
    uint32_t number;
    uint32_t descriptor_flags;
};

// The clocks as restored tasks will see them at about the time of the resume.
struct PlanClocks {
    timespec realtime{};
    timespec monotonic{};
    timespec boottime{};
};

// What a kind may use while it plans. No system calls here: only operations are emitted.
class FilePlanContext {
  public:
    virtual ~FilePlanContext() = default;
    virtual Plan& plan() = 0;
    // Runs once, as root in the unit's namespaces, before any task exists. What it opens, all tasks
    // inherit.
    virtual Program& agent() = 0;
    virtual const FileImages& images() const = 0;
    // The description of another record, planned first when it is not there yet.
    virtual Result<Slot> slot_of(uint32_t file_id) = 0;
    // The caller's descriptor for a key, where there is one.
    virtual std::optional<Slot> external(const std::string& key) const = 0;
    // Slot of the image directory, for side images that are too big for the arena.
    virtual Slot image_dir() const = 0;
    // Opens /proc/self/fd/SLOT anew in `program`: another struct file on the same inode.
    virtual Slot reopen(Program& program, std::string_view label, Slot slot, unsigned flags) = 0;
    // Slots that several records share (a ghost's inode, both ends of a pipe), by a name and number.
    virtual std::optional<Slot> shared_slot(std::string_view what, uint64_t id) const = 0;
    virtual void share_slot(std::string_view what, uint64_t id, Slot slot) = 0;
    // For files that can be opened only when all tasks exist: `open` emits into each late program, and
    // what it answers takes the place of the file's descriptors there.
    virtual void install_late(uint32_t file_id, std::function<Slot(Program&)> open) = 0;
    // A plugin makes it in a task; its descriptors are placeholders until then.
    virtual void made_by_plugin(uint32_t file_id) = 0;
    // Runs `emit` once for the late program of the first task that has the file, with the number it has
    // there; after all install_late() of that task.
    virtual void when_installed(uint32_t file_id,
                                std::function<void(Program&, const Installed&)> emit) = 0;
    // Emits at the agent's end, when all files are open: what must not see the opening (inotify).
    virtual void when_opened(std::function<void(Program&)> emit) = 0;
    // Every descriptor of a file, first the one in the task that is first in the forest.
    virtual const std::vector<Installed>& installed(uint32_t file_id) const = 0;
    // Is a process with this PID (as in the images) restored?
    virtual bool has_task(pid_t pid) const = 0;
    virtual const PlanClocks& clocks() const = 0;
    // Was there nothing at this path when the plan was made? The name of a deleted file may then be used
    // for a moment, by an operation that fails if it is taken meanwhile.
    virtual bool is_free(const std::string& path) const = 0;
    // Fills the memory of a memfd ("shmid") through `fd`, which is empty and of the right size.
    virtual Result<void> fill_memory(uint32_t shmid, uint64_t size, Slot fd) = 0;
    // Shared anonymous memory that tasks have mapped, where an open file is the same ("shmid").
    virtual std::optional<Slot> segment(uint32_t shmid) const = 0;
    // Emits F_SETFL and F_SETSIG for a fresh descriptor, and F_SETOWN_EX late.
    virtual void settle(std::string_view label, Slot fd, uint32_t file_id, unsigned flags,
                        const images::fown_entry& owner) = 0;
};

// A kind of open file. All functions are plain and without state of their own.
struct FileKind {
    images::fd_types type;
    const char* name;  // "pipe"
    // Whether the facts are those of this kind. The table is asked in order; the first yes counts.
    bool (*recognise)(const OpenFile& file);
    // Fills `entry` (type and id are set). What it cannot carry it adds as a blocker and succeeds; an
    // error is for what went wrong while asking.
    Result<void> (*dump)(const OpenFile& file, FileDumpContext& context, images::file_entry& entry);
    // Emits the operations that make the open file, and answers where its descriptor will be. No slot:
    // the kind installs its descriptors itself, late (pidfd, /proc of another task).
    Result<std::optional<Slot>> (*plan)(const images::file_entry& entry, FilePlanContext& context);
};

// The blocker for a file that no kind recognises: names it and says what helps.
Error unsupported_file(const OpenFile& file);

// Every kind there is, in the order in which they are asked. The list is in kinds.cc.
const std::vector<const FileKind*>& file_kinds();
// The kind that restores records of a type, or null.
const FileKind* file_kind_of(images::fd_types type);

}  // namespace checkpointd
