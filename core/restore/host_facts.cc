// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/restore/host_facts.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sstream>
#include <sys/prctl.h>

#include "core/base/io.h"

namespace checkpointd {

namespace {

constexpr int kTimerCreateRestoreIds = 77;  // PR_TIMER_CREATE_RESTORE_IDS, include/uapi/linux/prctl.h
constexpr int kTimerIdsGet = 2;

Result<void> read_offsets(HostFacts& facts) {
    auto text = read_file(AT_FDCWD, "/proc/self/timens_offsets");
    if (!text)
        return {};  // a kernel without time namespaces: nothing is shifted
    std::istringstream lines(*text);
    std::string clock;
    long seconds = 0, nanoseconds = 0;
    while (lines >> clock >> seconds >> nanoseconds) {
        if (clock == "monotonic")
            facts.monotonic_offset = {seconds, nanoseconds};
        else if (clock == "boottime")
            facts.boottime_offset = {seconds, nanoseconds};
    }
    return {};
}

uint32_t highest_descriptor() {
    uint32_t highest = 2;
    DIR* dir = opendir("/proc/self/fd");
    if (dir == nullptr)
        return highest;
    while (dirent* entry = readdir(dir))
        highest = std::max(highest, static_cast<uint32_t>(std::strtoul(entry->d_name, nullptr, 10)));
    closedir(dir);
    return highest;
}

}  // namespace

Result<HostFacts> host_facts() {
    HostFacts facts;
    CKPT_ASSIGN(facts.mappings, own_mappings());
    for (int i = 0; i < RLIM_NLIMITS; i++) {
        rlimit limit{};
        getrlimit(static_cast<__rlimit_resource>(i), &limit);
        facts.limits.push_back(limit);
    }
    CKPT_TRY(read_offsets(facts));
    clock_gettime(CLOCK_MONOTONIC, &facts.monotonic);
    clock_gettime(CLOCK_BOOTTIME, &facts.boottime);
    clock_gettime(CLOCK_REALTIME, &facts.realtime);
    facts.timer_ids = prctl(kTimerCreateRestoreIds, kTimerIdsGet, 0, 0, 0) >= 0;
    if (auto score = read_file(AT_FDCWD, "/proc/self/oom_score_adj"))
        facts.oom_score_adj = std::atoi(score->c_str());
    facts.nice = getpriority(PRIO_PROCESS, 0);
    facts.policy = sched_getscheduler(0);
    facts.highest_descriptor = highest_descriptor();
    return facts;
}

}  // namespace checkpointd
