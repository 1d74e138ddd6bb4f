// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/restore/host_facts.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <dirent.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <sstream>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

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

std::optional<uint32_t> own_number(const char* name, int base) {
    auto text = read_file(AT_FDCWD, std::string("/proc/self/") + name);
    if (!text || text->empty())
        return {};
    return static_cast<uint32_t>(std::strtoul(text->c_str(), nullptr, base));
}

void read_schedule(HostFacts& facts) {
    constexpr int kThread = 1;  // IOPRIO_WHO_PROCESS
    facts.nice = getpriority(PRIO_PROCESS, 0);
    facts.policy = sched_getscheduler(0);
    facts.cpus.resize(1024);  // 8192 CPUs, the most that x86_64 can be configured for
    long size = syscall(SYS_sched_getaffinity, 0, facts.cpus.size(), facts.cpus.data());
    facts.cpus.resize(size > 0 ? static_cast<size_t>(size) : 0);
    facts.io_priority = static_cast<uint32_t>(syscall(SYS_ioprio_get, kThread, 0));
    facts.timer_slack_ns = static_cast<uint64_t>(prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0));
}

uint64_t own_permitted() {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct words[2] = {};
    if (syscall(SYS_capget, &header, words) < 0)
        return 0;
    return words[0].permitted | uint64_t{words[1].permitted} << 32;
}

// PR_CAPBSET_READ fails for those that there are not.
uint64_t known_capabilities() {
    uint64_t known = 0;
    for (unsigned cap = 0; cap < 64; cap++)
        if (prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0)
            known |= uint64_t{1} << cap;
    return known;
}

}  // namespace

Result<HostFacts> host_facts() {
    HostFacts facts;
    CKPT_ASSIGN(facts.mappings, read_maps(getpid()));
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
    read_schedule(facts);
    facts.login = own_number("loginuid", 10);
    facts.coredump_filter = own_number("coredump_filter", 16);
    facts.permitted = own_permitted();
    facts.all_capabilities = known_capabilities();
    facts.highest_descriptor = highest_descriptor();
    return facts;
}

}  // namespace checkpointd
