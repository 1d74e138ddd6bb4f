// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/checkpoint_preflight.h"

#include <algorithm>

#include "plugins/cuda/devices.h"
#include "plugins/cuda/preflight.h"

namespace checkpointd::cuda {
namespace {

void append(std::vector<Error>& to, std::vector<Error> more) {
    std::move(more.begin(), more.end(), std::back_inserter(to));
}

Result<void> outcome(std::vector<Error> blockers) { return all_blockers("CUDA", "cannot be carried", std::move(blockers)); }

// A helper that dies with us would take what it has mapped along.
bool wants_storage(const Settings& settings, const Backend& backend) {
    return settings.storage == StorageWanted::kCustom || (settings.storage == StorageWanted::kAuto && backend.outlives_us());
}

Error lacks_storage() {
    return {ErrorKind::kUnsupported, "CUDA driver", "gives device memory to nobody",
            "install a driver of version 615 or newer, or set plugins: {cuda: {storage: auto}}", 0, {}};
}

Result<std::vector<Error>> check_processes(const std::vector<Process>& processes, const Settings& settings,
                                           Backend::Deadline deadline) {
    std::vector<Error> blockers;
    for (const Process& process : processes) {
        CKPT_ASSIGN(const ProcessState state, process.state(soon(deadline)));
        if (state != ProcessState::kRunning)
            blockers.push_back({ErrorKind::kConflict, fmt::format("pid {} (CUDA)", process.pid()),
                                "is locked or checkpointed by somebody else already",
                                "bring it back: cuda-checkpoint --toggle --pid PID", 0, {}});
        append(blockers, find_mps(process.pid()));
        if (settings.checks_ipc)
            append(blockers, find_ipc(process.pid()));
    }
    return blockers;
}

// What `find` says of those that are none of `processes`.
std::vector<Error> of_others(const std::vector<pid_t>& pids, const std::vector<Process>& processes,
                             std::vector<Error> (*find)(pid_t)) {
    std::vector<Error> blockers;
    for (pid_t pid : pids)
        if (std::none_of(processes.begin(), processes.end(), [&](const Process& one) { return one.pid() == pid; }))
            append(blockers, find(pid));
    return blockers;
}

// Such a driver knows of no process whether it uses CUDA.
Result<void> name_too_old(Error driver, const std::vector<pid_t>& pids) {
    std::vector<Error> blockers = find_instances();
    blockers.push_back(std::move(driver));
    for (pid_t pid : pids) {
        const bool is_user = may_use_cuda(pid);
        append(blockers, is_user ? find_users(pid) : find_leftovers(pid));
        if (is_user)
            append(blockers, find_mps(pid));
    }
    return outcome(std::move(blockers));
}

}  // namespace

Result<CheckpointFacts> check_checkpoint(Backend& backend, const Settings& settings, const std::vector<pid_t>& pids,
                                         const std::vector<Process>& processes, Backend::Deadline deadline) {
    std::vector<Error> blockers = find_instances();
    CKPT_ASSIGN(const Answer devices, ask_devices(backend, deadline));
    CheckpointFacts facts{wants_storage(settings, backend) && devices.offers_storage != 0, Usage(devices)};
    if (settings.storage == StorageWanted::kCustom && !facts.stores)
        blockers.push_back(lacks_storage());
    for (const Process& process : processes)
        CKPT_TRY(facts.usage.measure(process, deadline));
    if (!facts.stores && settings.checks_memory)
        append(blockers, facts.usage.check_host_memory());
    CKPT_ASSIGN(auto of_processes, check_processes(processes, settings, deadline));
    append(blockers, std::move(of_processes));
    append(blockers, of_others(pids, processes, find_leftovers));
    if (!blockers.empty())
        blockers.push_back(about(devices, blockers.front().kind));
    CKPT_TRY(outcome(std::move(blockers)));
    return facts;
}

Result<void> check_others(Backend* backend, const std::vector<pid_t>& pids, Backend::Deadline deadline) {
    auto blockers = of_others(pids, {}, find_leftovers);
    if (blockers.empty() || backend == nullptr)
        return outcome(std::move(blockers));
    auto devices = ask_devices(*backend, deadline);
    if (devices)
        return outcome(std::move(blockers));
    if (devices.error().kind != ErrorKind::kUnsupported)
        return tl::unexpected(std::move(devices).error());
    return name_too_old(std::move(devices).error(), pids);
}

Result<void> check_newcomers(const std::vector<pid_t>& pids, const std::vector<Process>& processes) {
    auto newcomers = of_others(pids, processes, find_newcomers);
    if (newcomers.size() == 1)
        return tl::unexpected(std::move(newcomers.front()));
    return all_blockers("CUDA", "came into use meanwhile", std::move(newcomers));
}

}  // namespace checkpointd::cuda
