// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/transaction/undo_kinds.h"

#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <dirent.h>
#include <fcntl.h>
#include <memory>
#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/base/io.h"
#include "core/kernel/cgroup.h"
#include "core/kernel/proc_stat.h"
#include "core/transaction/recorded_process.h"

namespace checkpointd {
namespace {

constexpr const char* kKillProcess = "core.kill-process";
constexpr const char* kRemoveTree = "core.remove-tree";
constexpr const char* kThawCgroup = "core.thaw-cgroup";
constexpr const char* kEmptyCgroup = "core.empty-cgroup";
constexpr std::chrono::milliseconds kDeathWait{5000};

Error bad_arguments(const char* kind) {
    return Error{ErrorKind::kInternal, kind, "wrong arguments in the journal", {}, 0, {}};
}

Result<void> kill_recorded(const UndoArgs& args) {
    CKPT_ASSIGN(const auto process, RecordedProcess::parse(args, 0));
    if (args.size() != 2 || process.pid <= 1)
        return tl::unexpected(bad_arguments(kKillProcess));
    return kill_process(process.pid, process.start);
}

Result<void> remove_children(int dir_fd, const std::string& path);

Result<void> remove_entry(int dir_fd, const std::string& name, const std::string& path) {
    if (unlinkat(dir_fd, name.c_str(), 0) == 0 || errno == ENOENT)
        return {};
    if (errno != EISDIR && errno != EPERM)
        return fail_errno(path, "cannot remove");
    ScopedFd child(openat(dir_fd, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!child)
        return fail_errno(path, "cannot open the directory to empty it");
    CKPT_TRY(remove_children(child.get(), path));
    if (unlinkat(dir_fd, name.c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT)
        return fail_errno(path, "cannot remove the directory");
    return {};
}

Result<void> remove_children(int dir_fd, const std::string& path) {
    std::unique_ptr<DIR, int (*)(DIR*)> dir(fdopendir(dup(dir_fd)), closedir);
    if (!dir)
        return fail_errno(path, "cannot list the directory");
    std::vector<std::string> names;
    while (const dirent* entry = readdir(dir.get()))
        if (std::string_view name = entry->d_name; name != "." && name != "..")
            names.emplace_back(name);
    for (const std::string& name : names)
        CKPT_TRY(remove_entry(dir_fd, name, path + "/" + name));
    return {};
}

Result<void> remove_tree(const UndoArgs& args) {
    if (args.size() != 1 || args[0].size() < 2 || args[0][0] != '/')
        return tl::unexpected(bad_arguments(kRemoveTree));
    return remove_entry(AT_FDCWD, args[0], args[0]);
}

Result<void> thaw(const UndoArgs& args) {
    if (args.size() != 1)
        return tl::unexpected(bad_arguments(kThawCgroup));
    return thaw_cgroup(args[0]);
}

Result<void> empty_cgroup(const UndoArgs& args) {
    if (args.size() != 1)
        return tl::unexpected(bad_arguments(kEmptyCgroup));
    return kill_cgroup(args[0], std::chrono::steady_clock::now() + kDeathWait);
}

}  // namespace

Result<void> kill_process(pid_t pid, uint64_t start_time) {
    // The pidfd first: it keeps naming the same process while the start time is compared.
    ScopedFd handle(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
    auto start = process_start_time(pid);
    if (!handle || !start || *start != start_time)
        return {};
    if (syscall(SYS_pidfd_send_signal, handle.get(), SIGKILL, nullptr, 0) != 0 && errno != ESRCH)
        return fail_errno(fmt::format("pid {}", pid), "cannot kill");
    pollfd dead = {handle.get(), POLLIN, 0};
    if (poll(&dead, 1, static_cast<int>(kDeathWait.count())) == 0)
        return fail(ErrorKind::kTimeout, fmt::format("pid {}", pid), "does not die from SIGKILL");
    return {};
}

Result<uint64_t> process_start_time(pid_t pid) {
    CKPT_ASSIGN(const ProcStat stat, read_stat(pid));
    return stat.start_time;
}

void add_core_undo_kinds(UndoTable& table) {
    table.add(kKillProcess, kill_recorded);
    table.add(kRemoveTree, remove_tree);
    table.add(kThawCgroup, thaw);
    table.add(kEmptyCgroup, empty_cgroup);
}

Result<uint64_t> undo_by_killing(Journal& journal, pid_t pid) {
    UndoArgs args;
    CKPT_TRY(RecordedProcess::append(args, pid));
    return journal.add(kKillProcess, std::move(args));
}

Result<uint64_t> undo_by_removing(Journal& journal, const std::string& path) {
    return journal.add(kRemoveTree, {path});
}

Result<uint64_t> undo_by_thawing(Journal& journal, const std::string& cgroup_dir) {
    return journal.add(kThawCgroup, {cgroup_dir});
}

Result<uint64_t> undo_by_emptying(Journal& journal, const std::string& cgroup_dir) {
    return journal.add(kEmptyCgroup, {cgroup_dir});
}

}  // namespace checkpointd
