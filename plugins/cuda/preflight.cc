// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/preflight.h"

#include <algorithm>
#include <charconv>
#include <fcntl.h>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <sys/socket.h>

#include <fmt/format.h>

#include "core/base/io.h"
#include "core/kernel/cgroup.h"
#include "core/kernel/pidfd.h"
#include "core/kernel/room.h"
#include "core/kernel/sock_diag.h"

namespace checkpointd::cuda {
namespace {

constexpr std::string_view kDevices = "/dev/nvidia";
constexpr std::string_view kSocket = "socket:[";
constexpr const char* kPipeVariable = "CUDA_MPS_PIPE_DIRECTORY";
constexpr const char* kJobVariable = "CUDA_CHECKPOINT_JOB_FILE";
constexpr const char* kEventFile = "/cuda.shm.";  // cuda.shm.UID.PID.NUMBER, in /dev/shm
constexpr const char* kPipes = "/tmp/nvidia-mps";

Error blocker(ErrorKind kind, std::string object, std::string message, std::string remedy) {
    return {kind, std::move(object), std::move(message), std::move(remedy), 0, {}};
}

// Number and target of each descriptor.
std::vector<std::pair<int, std::string>> descriptors_of(pid_t pid) {
    std::vector<std::pair<int, std::string>> all;
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(fmt::format("/proc/{}/fd", pid), error)) {
        auto target = read_link(AT_FDCWD, entry.path());
        const std::string name = entry.path().filename();
        int number = -1;
        std::from_chars(name.data(), name.data() + name.size(), number);
        if (target)
            all.emplace_back(number, std::move(*target));
    }
    return all;
}

// Those of NVIDIA that it has open; empty without.
std::string devices_of(pid_t pid) {
    std::set<std::string> devices;
    for (const auto& [number, target] : descriptors_of(pid))
        if (target.starts_with(kDevices))
            devices.insert(fmt::format("{} (fd {})", target, number));
    return fmt::format("{}", fmt::join(devices, ", "));
}

// As the program was started with it.
std::optional<std::string> variable_of(pid_t pid, const std::string& name) {
    auto text = read_file(AT_FDCWD, fmt::format("/proc/{}/environ", pid));
    const std::string all = text ? std::string(1, 0) + *text : std::string();
    const size_t at = all.find(std::string(1, 0) + name + "=");
    return at == std::string::npos ? std::nullopt : std::optional<std::string>(all.c_str() + at + name.size() + 2);
}

// The name that the other end of a unix socket is bound to; empty for all else.
std::string peer_of(pid_t pid, int number, const std::string& target) {
    uint32_t inode = 0;
    std::from_chars(target.data() + kSocket.size(), target.data() + target.size(), inode);
    auto process = pidfd_open(pid);
    auto socket = process ? pidfd_get_fd(process->get(), number) : tl::unexpected(std::move(process).error());
    int domain = 0;
    socklen_t size = sizeof(domain);
    if (!socket || getsockopt(socket->get(), SOL_SOCKET, SO_DOMAIN, &domain, &size) != 0 || domain != AF_UNIX)
        return {};
    auto diag = open_sock_diag(socket->get());
    auto own = diag ? unix_diag(diag->get(), inode) : tl::unexpected(diag.error());
    if (!own || own->peer == 0)
        return {};
    auto peer = unix_diag(diag->get(), own->peer);
    return peer ? peer->name : std::string();
}

std::string mib(uint64_t bytes) { return fmt::format("{} MiB", (bytes + (1u << 20) - 1) >> 20); }

}  // namespace

bool may_use_cuda(pid_t pid) {
    auto maps = read_file(AT_FDCWD, fmt::format("/proc/{}/maps", pid));
    return maps && maps->find("libcuda.so") != std::string::npos;
}

// A folder each: capabilities/gpuN/mig/giM.
std::vector<Error> find_instances(const std::string& capabilities) {
    std::vector<Error> blockers;
    std::error_code error;
    for (const auto& gpu : std::filesystem::directory_iterator(capabilities, error)) {
        std::error_code none;
        const auto instances = std::filesystem::directory_iterator(gpu.path() / "mig", none);
        if (std::any_of(begin(instances), end(instances),
                        [](const auto& entry) { return entry.path().filename().string().starts_with("gi"); }))
            blockers.push_back(blocker(ErrorKind::kUnsupported, fmt::format("CUDA device {}", gpu.path().filename().string()),
                                       "is divided into instances (MIG)", "the driver cannot checkpoint what runs in them"));
    }
    return blockers;
}

std::vector<Error> find_leftovers(pid_t pid) {
    const std::string devices = devices_of(pid);
    if (devices.empty())
        return {};
    return {blocker(ErrorKind::kUnsupported, fmt::format("pid {}", pid),
                    fmt::format("has {} open and no CUDA state that the driver knows of: it was forked by a program that "
                                "uses CUDA, or asks about devices only", devices),
                    "let it close them, or call exec() after fork()")};
}

std::vector<Error> find_users(pid_t pid) {
    const std::string devices = devices_of(pid);
    if (devices.empty())
        return {};
    return {blocker(ErrorKind::kUnsupported, fmt::format("pid {} (CUDA)", pid),
                    fmt::format("has {} open, which this driver cannot take from it", devices), {})};
}

std::vector<Error> find_newcomers(pid_t pid) {
    const std::string devices = devices_of(pid);
    if (devices.empty())
        return {};
    return {blocker(ErrorKind::kConflict, fmt::format("pid {} (CUDA)", pid),
                    fmt::format("has {} open, and had none when the checkpoint began", devices), "try again")};
}

std::vector<Error> find_mps(pid_t pid) {
    // Where its server would be, as the program sees it, which is enough to tell a name.
    const std::string pipes = variable_of(pid, kPipeVariable).value_or(kPipes) + "/";
    for (const auto& [number, target] : descriptors_of(pid))
        if (target.starts_with(kSocket))
            if (const std::string peer = peer_of(pid, number, target); peer.starts_with(pipes))
                return {blocker(ErrorKind::kUnsupported, fmt::format("pid {} (CUDA)", pid),
                                fmt::format("works through the multi-process service (MPS) at {}", peer),
                                "run it without: the driver cannot checkpoint what a server does for several")};
    return {};
}

std::vector<Error> find_ipc(pid_t pid) {
    auto maps = read_file(AT_FDCWD, fmt::format("/proc/{}/maps", pid));
    const size_t name = maps ? maps->find(kEventFile) : std::string::npos;
    if (name == std::string::npos || variable_of(pid, kJobVariable))
        return {};
    const size_t start = maps->rfind(' ', name) + 1;
    return {blocker(ErrorKind::kUnsupported, fmt::format("pid {} (CUDA)", pid),
                    fmt::format("has {} mapped, where CUDA has events for other processes (IPC), or what it does through the "
                                "multi-process service (MPS)", maps->substr(start, maps->find('\n', start) - start)),
                    "let it do without; start it by cuda-checkpoint --launch-job, with driver 610; or leave it to the driver to "
                    "refuse: plugins: {cuda: {check-ipc: no}}")};
}

std::vector<Error> check_staging(const std::vector<Staging>& processes, uint64_t most) {
    uint64_t sum = 0;
    std::map<std::string, uint64_t> groups;
    const auto top = cgroup2_mount_point();
    for (const Staging& process : processes) {
        sum += process.bytes;
        if (auto group = top ? cgroup2_of(process.pid) : tl::unexpected(top.error()); group)
            groups[*group] += process.bytes;
    }
    sum = std::min(sum, most);
    const char* remedy = "free memory, or set plugins: {cuda: {check-memory: no}} where this is too much";
    std::vector<Error> blockers;
    if (const auto free = available_memory(); free && *free < sum)
        blockers.push_back(blocker(ErrorKind::kConflict, "host memory",
                                   fmt::format("has {} left, and the devices hold up to {} that must go there", mib(*free),
                                               mib(sum)), remedy));
    for (const auto& [group, bytes] : groups)
        if (const uint64_t room = cgroup_room(group, *top).memory; room < std::min(bytes, most))
            blockers.push_back(blocker(ErrorKind::kConflict, group,
                                       fmt::format("may take {} more memory, and its processes have up to {} on devices "
                                                   "that must go there", mib(room), mib(std::min(bytes, most))),
                                       "raise MemoryMax= of the unit, or set plugins: {cuda: {check-memory: no}}"));
    return blockers;
}

}  // namespace checkpointd::cuda
