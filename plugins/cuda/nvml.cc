// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/nvml.h"

#include <dlfcn.h>
#include <type_traits>
#include <vector>

#include "plugins/cuda/uuid.h"

namespace checkpointd::cuda {
namespace {

// nvmlProcessInfo_t, declared by ourselves.
struct ProcessInfo {
    unsigned pid;
    unsigned long long bytes;
    unsigned gpu_instance;
    unsigned compute_instance;
};

// nvmlMemory_t.
struct Memory {
    unsigned long long total, free, used;
};

constexpr int kGood = 0;                // NVML_SUCCESS
constexpr int kMoreThanFits = 7;        // NVML_ERROR_INSUFFICIENT_SIZE
constexpr unsigned long long kUnknown = ~0ull;  // NVML_VALUE_NOT_AVAILABLE

struct Nvml {
    int (*init)() = nullptr;
    int (*shutdown)() = nullptr;
    int (*count)(unsigned*) = nullptr;
    int (*device)(unsigned, void**) = nullptr;
    int (*uuid)(void*, char*, unsigned) = nullptr;
    int (*processes)(void*, unsigned*, ProcessInfo*) = nullptr;
    int (*memory)(void*, Memory*) = nullptr;
    int (*version)(int*) = nullptr;

    bool load() {
        void* library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
        auto find = [&](const char* name, auto& function) {
            function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
            return function != nullptr;
        };
        return library != nullptr && find("nvmlInit_v2", init) && find("nvmlShutdown", shutdown) &&
               find("nvmlDeviceGetCount_v2", count) && find("nvmlDeviceGetHandleByIndex_v2", device) &&
               find("nvmlDeviceGetUUID", uuid) &&
               find("nvmlDeviceGetComputeRunningProcesses_v3", processes) && find("nvmlDeviceGetMemoryInfo", memory) &&
               find("nvmlSystemGetCudaDriverVersion_v2", version);
    }
};

std::optional<std::vector<ProcessInfo>> processes_of(const Nvml& nvml, void* device) {
    std::vector<ProcessInfo> list(64);
    for (;;) {
        auto count = static_cast<unsigned>(list.size());
        const int code = nvml.processes(device, &count, list.data());
        if (code == kMoreThanFits && list.size() < 65536) {
            list.resize(list.size() * 2);  // more may start in between
            continue;
        }
        if (code != kGood)
            return std::nullopt;
        list.resize(count);
        return list;
    }
}

std::optional<Uuid> uuid_of(const Nvml& nvml, void* device) {
    char text[96] = "";  // NVML_DEVICE_UUID_V2_BUFFER_SIZE
    if (nvml.uuid(device, text, sizeof(text)) != kGood)
        return std::nullopt;
    auto uuid = parse_uuid(text);
    return uuid ? std::optional(*uuid) : std::nullopt;
}

// Adds what the process has on it; false where that is not known.
bool add_usage(const Nvml& nvml, void* device, pid_t pid, std::vector<Device>& usage) {
    const auto list = processes_of(nvml, device);
    if (!list)
        return false;
    for (const ProcessInfo& process : *list) {
        if (process.pid != static_cast<unsigned>(pid))
            continue;
        const auto uuid = uuid_of(nvml, device);
        if (process.bytes == kUnknown || !uuid)
            return false;
        usage.push_back({*uuid, process.bytes, 0});
    }
    return true;
}

std::optional<std::vector<Device>> usage_of(const Nvml& nvml, pid_t pid) {
    unsigned count = 0;
    std::vector<Device> usage;
    if (nvml.count(&count) != kGood)
        return std::nullopt;
    for (unsigned i = 0; i < count; ++i) {
        void* device = nullptr;
        if (nvml.device(i, &device) != kGood || !add_usage(nvml, device, pid, usage))
            return std::nullopt;
    }
    return usage.empty() ? std::nullopt : std::optional(usage);
}

std::optional<Answer> devices_of(const Nvml& nvml) {
    Answer answer;
    unsigned count = 0;
    if (nvml.version(&answer.value) != kGood || nvml.count(&count) != kGood || count > kMaxDevices)
        return std::nullopt;
    for (unsigned i = 0; i < count; ++i) {
        void* device = nullptr;
        Memory memory{};
        const auto uuid = nvml.device(i, &device) == kGood ? uuid_of(nvml, device) : std::nullopt;
        if (!uuid || nvml.memory(device, &memory) != kGood)
            return std::nullopt;
        answer.devices[answer.device_count++] = {*uuid, memory.total, memory.free};
    }
    return answer;
}

}  // namespace

std::optional<Answer> devices_by_nvml() {
    Nvml nvml;
    if (!nvml.load() || nvml.init() != kGood)
        return std::nullopt;
    auto devices = devices_of(nvml);
    (void)nvml.shutdown();
    return devices;
}

std::optional<std::vector<Device>> device_memory_of(pid_t pid) {
    Nvml nvml;
    if (!nvml.load() || nvml.init() != kGood)
        return std::nullopt;
    auto usage = usage_of(nvml, pid);
    (void)nvml.shutdown();
    return usage;
}

}  // namespace checkpointd::cuda
