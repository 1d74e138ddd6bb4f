// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/checkpoint/forked_copies.h"

#include <fcntl.h>
#include <unistd.h>
#include <set>
#include <string>

#include "core/base/io.h"
#include "core/kernel/cgroup.h"
#include "core/kernel/room.h"
#include "core/kernel/same_cpu.h"

namespace checkpointd {
namespace {

using Candidates = std::vector<CopyCandidate>;

// Orphans go to the nearest subreaper above them, else to init.
Candidates unseen(const Candidates& candidates) {
    std::set<pid_t> seen;
    Candidates found;
    for (const CopyCandidate& candidate : candidates) {
        const SeizedProcess& process = *candidate.process;
        if (candidate.is_subreaper || seen.contains(process.parent))
            seen.insert(process.pid);
        else
            found.push_back(candidate);
    }
    return found;
}

std::set<std::string> cgroups_of(const Candidates& candidates) {
    std::set<std::string> paths;
    for (const CopyCandidate& candidate : candidates)
        if (auto path = cgroup2_of(candidate.process->pid))
            paths.insert(*path);
    return paths;
}

// Each page may be there twice, and each process have a copy and, for a moment, a helper.
bool is_room_for(const Candidates& candidates) {
    uint64_t bytes = 0;
    for (const CopyCandidate& candidate : candidates)
        bytes += candidate.bytes;
    auto available = available_memory();
    if (memory_is_promised_in_full() || !available || *available < bytes)
        return false;
    auto top = cgroup2_mount_point();
    for (const std::string& path : top ? cgroups_of(candidates) : std::set<std::string>()) {
        const Room room = cgroup_room(path, *top);
        if (room.memory < bytes || room.tasks < 2 * candidates.size())
            return false;
    }
    return true;
}

}  // namespace

ForkedCopies ForkedCopies::make(const Candidates& candidates, uint64_t from) {
    ForkedCopies made;
    Candidates worth = unseen(candidates);
    std::erase_if(worth, [from](const CopyCandidate& candidate) { return candidate.bytes < from; });
    if (worth.empty() || !is_room_for(worth))
        return made;
    for (const CopyCandidate& candidate : worth) {
        const SameCpu beside(candidate.process->main_thread().tid());
        auto copy = ForkedCopy::make(*candidate.process);
        if (!copy)
            continue;
        // If memory runs out all the same, the copy ends, not the program.
        (void)write_file(AT_FDCWD, fmt::format("/proc/{}/oom_score_adj", copy->pid()), "1000");
        made.copies_.emplace(candidate.process->pid, std::move(*copy));
    }
    return made;
}

const ForkedCopy* ForkedCopies::of(pid_t pid) const {
    auto found = copies_.find(pid);
    return found == copies_.end() ? nullptr : &found->second;
}

void ForkedCopies::leave_cgroup() const {
    auto ours = cgroup2_of(getpid());
    for (const auto& [pid, copy] : copies_)
        if (ours)
            (void)move_to_cgroup(copy.pid(), *ours);
}

}  // namespace checkpointd
