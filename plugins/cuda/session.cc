// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/session.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <filesystem>
#include <unistd.h>

#include "core/base/io.h"
#include "core/kernel/room.h"
#include "core/transaction/undo_kinds.h"
#include "plugins/cuda/devices_image.h"

namespace checkpointd::cuda {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kControlDevice = "/dev/nvidiactl";
constexpr const char* kCapabilities = "/proc/driver/nvidia/capabilities";
// For calls that ask, and for loading the driver, which takes seconds.
constexpr std::chrono::seconds kAskTime{60};

// Saves a call to the driver for each process: whoever uses CUDA has its library mapped.
bool may_use_cuda(pid_t pid) {
    auto maps = read_file(AT_FDCWD, fmt::format("/proc/{}/maps", pid));
    return maps && maps->find("libcuda.so") != std::string::npos;
}

// MIG instances have a folder each: capabilities/gpuN/mig/giM.
bool has_instances() {
    std::error_code error;
    for (const auto& gpu : std::filesystem::directory_iterator(kCapabilities, error)) {
        std::error_code none;
        for (const auto& entry : std::filesystem::directory_iterator(gpu.path() / "mig", none))
            if (entry.path().filename().string().starts_with("gi"))
                return true;
    }
    return false;
}

Backend::Deadline soon(Backend::Deadline deadline) { return std::min(deadline, Clock::now() + kAskTime); }

}  // namespace

Result<std::unique_ptr<Session>> Session::open(const ckptd_host& host, ckptd_purpose purpose) {
    CKPT_ASSIGN(Settings settings,
                Settings::read([&](const char* name) { return host.setting(host.context, name); }));
    if (access(kControlDevice, F_OK) != 0)
        return std::unique_ptr<Session>();
    return std::unique_ptr<Session>(new Session(host, purpose, std::move(settings)));
}

Result<Answer> Session::devices(bool with_memory, Deadline deadline) {
    Request request;
    request.operation = with_memory ? Operation::kMemory : Operation::kHello;
    CKPT_ASSIGN(Answer answer, backend_->ask(request, soon(deadline)));
    if (answer.code == kSuccess && answer.value >= kBaseVersion)
        return answer;
    return fail(ErrorKind::kUnsupported, "CUDA driver", fmt::format("cannot checkpoint processes: {}", answer.text),
                "install a driver of version 570 or newer, or switch the plugin off (plugins: {cuda: no})");
}

Result<bool> Session::find_processes(const std::vector<pid_t>& pids, Deadline deadline) {
    processes_.clear();
    std::vector<pid_t> candidates;
    std::copy_if(pids.begin(), pids.end(), std::back_inserter(candidates), may_use_cuda);
    if (candidates.empty())
        return false;
    if (!backend_) {
        CKPT_ASSIGN(backend_, open_backend(settings_));
    }
    for (pid_t pid : candidates) {
        CKPT_ASSIGN(auto process, Process::find(*backend_, pid, soon(deadline)));
        if (process)
            processes_.push_back(*process);
    }
    return !processes_.empty();
}

// What the driver copies goes to memory of the processes first.
Result<void> Session::check_host_memory(const Answer& devices) const {
    uint64_t used = 0;
    for (uint32_t i = 0; i < devices.device_count; ++i)
        used += devices.devices[i].total_bytes - devices.devices[i].free_bytes;
    const uint64_t available = available_memory().value_or(UINT64_MAX);
    if (!settings_.checks_memory || used <= available)
        return {};
    return fail(ErrorKind::kConflict, "host memory",
                fmt::format("has {} MiB left, and the devices hold up to {} MiB that must go there", available >> 20,
                            used >> 20),
                "free memory, or set plugins: {cuda: {check-memory: no}} where most of it is of other units");
}

Result<void> Session::check_here(Deadline deadline) {
    std::vector<Error> blockers;
    if (has_instances())
        blockers.push_back({ErrorKind::kUnsupported, "CUDA device", "is divided into instances (MIG)",
                            "the driver cannot checkpoint what runs in them", 0, {}});
    CKPT_ASSIGN(before_, devices(true, deadline));
    if (auto room = check_host_memory(before_); !room)
        blockers.push_back(std::move(room).error());
    for (const Process& process : processes_) {
        CKPT_ASSIGN(const ProcessState state, process.state(soon(deadline)));
        if (state != ProcessState::kRunning)
            blockers.push_back({ErrorKind::kConflict, fmt::format("pid {} (CUDA)", process.pid()),
                                "is locked or checkpointed by somebody else already",
                                "bring it back: cuda-checkpoint --toggle --pid PID", 0, {}});
    }
    if (blockers.size() == 1)
        return tl::unexpected(std::move(blockers.front()));
    return all_blockers("CUDA", "cannot be carried", std::move(blockers));
}

Result<bool> Session::probe(const std::vector<pid_t>& pids, Deadline deadline) {
    if (purpose_ == CKPTD_RESTORE) {
        CKPT_ASSIGN(backend_, open_backend(settings_));
        CKPT_TRY(check_image(deadline));
        return true;
    }
    CKPT_ASSIGN(const bool found, find_processes(pids, deadline));
    if (found)
        CKPT_TRY(check_here(deadline));
    return found;
}

Result<void> Session::write_down(const Process& process) {
    CKPT_ASSIGN(const uint64_t start, process_start_time(process.pid()));
    const std::string record = fmt::format("{} {} {} {}", process.pid(), start, settings_.by_command ? "command" : "api",
                                           settings_.command);
    undo_[process.pid()] = host_.journal(host_.context, record.c_str());
    if (undo_[process.pid()] == 0)
        return fail(ErrorKind::kSystem, "journal", "cannot write down that CUDA is to be unlocked");
    return {};
}

// All of them, before any task stands: work that is under way may need another of them to come to its end.
Result<void> Session::quiesce(const std::vector<pid_t>&) {
    for (Process& process : processes_) {
        CKPT_TRY(write_down(process));
        CKPT_TRY(process.lock(settings_.lock_timeout));
    }
    return {};
}

Result<void> Session::prepare(const std::vector<pid_t>&, Deadline deadline) {
    for (Process& process : processes_)
        if (purpose_ == CKPTD_CHECKPOINT)
            CKPT_TRY(process.checkpoint(host_, std::min(deadline, Clock::now() + settings_.checkpoint_timeout)));
    return {};
}

// What the processes gave back is what they will need.
Result<void> Session::complete(Deadline deadline) {
    if (purpose_ == CKPTD_RESTORE)
        return {};
    CKPT_ASSIGN(const Answer after, devices(true, deadline));
    DevicesImage image{processes_.size(), before_, after};
    ScopedFd file(host_.open_image(host_.context, kDevicesImage));
    if (!file)
        return fail_errno(kDevicesImage, "cannot be made");
    const std::string text = to_json(image);
    return write_all(file.get(), text.data(), text.size(), kDevicesImage);
}

Result<void> Session::check_image(Deadline deadline) {
    ScopedFd file(host_.open_image(host_.context, kDevicesImage));
    if (!file && errno == ENOENT)
        return {};  // of CRIU, which keeps no such list
    if (!file)
        return fail_errno(kDevicesImage, "cannot be read");
    CKPT_ASSIGN(const std::string text, read_fd(file.get(), kDevicesImage, 1 << 20));
    CKPT_ASSIGN(const auto wanted, parse_devices(text));
    wanted_processes_ = wanted.processes;
    CKPT_ASSIGN(const Answer here, devices(true, deadline));
    if (settings_.by_command)
        return {};  // the command does not tell which devices there are
    return check_devices(wanted.devices, here, settings_.device_map);
}

// The driver's time has passed: what the policy wants then.
Result<void> Session::give_up_on(Process& process, Error why, Deadline deadline) {
    if (settings_.on_timeout == OnTimeout::kKill && purpose_ == CKPTD_CHECKPOINT)
        (void)kill(process.pid(), SIGKILL);
    if (settings_.on_timeout != OnTimeout::kResume || purpose_ == CKPTD_RESTORE)
        return tl::unexpected(std::move(why));
    return process.bring_back(&host_, settings_.device_map, deadline);
}

Result<void> Session::resume(const std::vector<pid_t>& pids, Deadline deadline) {
    if (purpose_ == CKPTD_RESTORE) {
        CKPT_TRY(find_processes(pids, deadline));
        if (processes_.size() < wanted_processes_)
            return fail(ErrorKind::kSystem, "CUDA", fmt::format("the driver knows {} of the {} processes that used it",
                                                                processes_.size(), wanted_processes_));
    }
    std::vector<Error> failures;
    for (auto process = processes_.rbegin(); process != processes_.rend(); ++process) {
        if (purpose_ == CKPTD_CHECKPOINT && !process->is_touched())
            continue;
        auto back = process->bring_back(&host_, purpose_ == CKPTD_RESTORE ? settings_.device_map : std::vector<GpuPair>(),
                                        std::min(deadline, Clock::now() + settings_.checkpoint_timeout));
        if (!back && back.error().kind == ErrorKind::kTimeout)
            back = give_up_on(*process, std::move(back).error(), deadline);
        if (!back)
            failures.push_back(std::move(back).error());
        else if (undo_.contains(process->pid()))
            (void)host_.forget(host_.context, undo_[process->pid()]);
    }
    if (failures.size() == 1)
        return tl::unexpected(std::move(failures.front()));
    return all_blockers("CUDA", "could not be brought back", std::move(failures));
}

Result<void> Session::undo(const std::string& record, Deadline deadline) {
    int pid = 0;
    unsigned long long start = 0;
    char backend[16] = "";
    int command_at = 0;
    if (std::sscanf(record.c_str(), "%d %llu %15s %n", &pid, &start, backend, &command_at) != 3 || command_at == 0)
        return fail(ErrorKind::kInternal, "plugins.undo", "a record of the CUDA plugin cannot be read");
    auto now = process_start_time(pid);
    if (!now || *now != start)
        return {};  // it has ended
    Settings settings;
    settings.by_command = std::string_view(backend) == "command";
    settings.command = record.substr(static_cast<size_t>(command_at));
    CKPT_ASSIGN(auto own, open_backend(settings));
    CKPT_ASSIGN(auto process, Process::find(*own, pid, soon(deadline)));
    return process ? process->bring_back(nullptr, {}, deadline) : Result<void>();
}

}  // namespace checkpointd::cuda
