// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/driver.h"

#include <algorithm>
#include <cstdio>
#include <dlfcn.h>

namespace checkpointd::cuda {
namespace {

constexpr const char* kLibrary = "libcuda.so.1";

template <typename Function>
bool resolve(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    return function != nullptr;
}

// By cuGetProcAddress(), as what dlsym() finds under a plain name is its oldest version, with which copies fail.
class Resolver {
  public:
    explicit Resolver(void* library) { (void)resolve(library, "cuGetProcAddress_v2", find_); }

    template <typename Function>
    Resolver& operator()(const char* name, Function& function) {
        void* found = nullptr;
        int status = -1;
        if (find_ == nullptr || find_(name, &found, kStorageVersion, 0, &status) != kSuccess || status != 0 || found == nullptr)
            has_all_ = false;
        else
            function = reinterpret_cast<Function>(found);
        return *this;
    }
    bool has_all() const { return has_all_; }

  private:
    int (*find_)(const char*, void**, int version, uint64_t flags, int* status) = nullptr;
    bool has_all_ = true;
};

}  // namespace

void Driver::resolve_storage(void* library) {
    if (version_ < kStorageVersion)
        return;
    StorageCalls calls;
    calls.checkpoint = checkpoint_;
    calls.restore = restore_;
    calls.state = state_;
    Resolver resolver(library);
    resolver("cuCheckpointOperationComplete", calls.complete)("cuDeviceGetCount", calls.device_count)(
        "cuDeviceGet", calls.device)("cuDeviceGetUuid", calls.uuid)("cuDevicePrimaryCtxRetain", calls.context_retain)(
        "cuDevicePrimaryCtxRelease", calls.context_release)("cuCtxSetCurrent", calls.context_set)(
        "cuCtxGetDevice", calls.context_device)("cuStreamGetCtx", calls.stream_context)(
        "cuStreamCreate", calls.stream_create)("cuStreamDestroy", calls.stream_destroy)(
        "cuStreamSynchronize", calls.stream_wait)("cuEventCreate", calls.event_create)(
        "cuEventDestroy", calls.event_destroy)("cuEventRecord", calls.event_record)(
        "cuEventSynchronize", calls.event_wait)("cuMemHostAlloc", calls.host_alloc)("cuMemFreeHost", calls.host_free)(
        "cuMemcpyDtoHAsync", calls.copy_out)("cuMemcpyHtoDAsync", calls.copy_in);
    if (resolver.has_all())
        storage_ = calls;
}

Result<Driver> Driver::load() {
    void* library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (library == nullptr)
        return fail(ErrorKind::kNotFound, kLibrary, fmt::format("cannot be loaded: {}", dlerror()),
                    "install NVIDIA's driver");
    Driver driver;
    int (*init)(unsigned) = nullptr;
    int (*get_version)(int*) = nullptr;
    if (!resolve(library, "cuInit", init) || !resolve(library, "cuDriverGetVersion", get_version) ||
        !resolve(library, "cuDeviceGetCount", driver.get_count_) ||
        !resolve(library, "cuDeviceGet", driver.get_device_) ||
        !resolve(library, "cuDeviceGetUuid", driver.get_uuid_) ||
        !resolve(library, "cuDeviceTotalMem_v2", driver.total_memory_) ||
        !resolve(library, "cuGetErrorName", driver.get_name_))
        return fail(ErrorKind::kUnsupported, kLibrary, "lacks functions that every driver has");
    if (int code = get_version(&driver.version_); code != kSuccess || driver.version_ < kBaseVersion)
        return fail(ErrorKind::kUnsupported, kLibrary,
                    fmt::format("is of CUDA {}.{}", driver.version_ / 1000, driver.version_ % 1000 / 10));
    if (!resolve(library, "cuCheckpointProcessGetRestoreThreadId", driver.thread_) ||
        !resolve(library, "cuCheckpointProcessGetState", driver.state_) ||
        !resolve(library, "cuCheckpointProcessLock", driver.lock_) ||
        !resolve(library, "cuCheckpointProcessCheckpoint", driver.checkpoint_) ||
        !resolve(library, "cuCheckpointProcessRestore", driver.restore_) ||
        !resolve(library, "cuCheckpointProcessUnlock", driver.unlock_))
        return fail(ErrorKind::kUnsupported, kLibrary, "has no calls to checkpoint processes");
    driver.resolve_storage(library);
    (void)resolve(library, "cuDevicePrimaryCtxRetain", driver.context_retain_);
    (void)resolve(library, "cuDevicePrimaryCtxRelease_v2", driver.context_release_);
    (void)resolve(library, "cuCtxSetCurrent", driver.context_set_);
    (void)resolve(library, "cuMemGetInfo_v2", driver.memory_info_);
    if (int code = init(0); code != kSuccess)
        return fail(code == kNoDevice ? ErrorKind::kNotFound : ErrorKind::kSystem, kLibrary,
                    fmt::format("cuInit answers {}", code));
    return driver;
}

// What is free is known inside a context only, which takes memory of the device for as long.
void Driver::ask_free(int device, Device& out) const {
    void* context = nullptr;
    if (!context_retain_ || !context_release_ || !context_set_ || !memory_info_ ||
        context_retain_(&context, device) != kSuccess)
        return;
    size_t free_bytes = 0;
    size_t total = 0;
    if (context_set_(context) == kSuccess && memory_info_(&free_bytes, &total) == kSuccess)
        out.free_bytes = free_bytes;
    (void)context_set_(nullptr);
    (void)context_release_(device);
}

Answer Driver::devices(bool with_memory) const {
    Answer answer;
    answer.value = version_;
    answer.offers_storage = storage_.all();
    int count = 0;
    answer.code = get_count_(&count);
    for (int i = 0; answer.code == kSuccess && i < std::min<int>(count, kMaxDevices); ++i) {
        int device = 0;
        size_t total = 0;
        Device& out = answer.devices[answer.device_count];
        if (get_device_(&device, i) != kSuccess || get_uuid_(&out.uuid, device) != kSuccess ||
            total_memory_(&total, device) != kSuccess)
            continue;
        out.total_bytes = out.free_bytes = total;
        if (with_memory)
            ask_free(device, out);
        ++answer.device_count;
    }
    return answer;
}

int Driver::call(const Request& request, Answer& answer) const {
    const int pid = request.pid;
    switch (request.operation) {
        case Operation::kThread: return thread_(pid, &answer.value);
        case Operation::kState: {
            ProcessState state{};
            const int code = state_(pid, &state);
            answer.value = static_cast<int32_t>(state);
            return code;
        }
        case Operation::kLock: {
            LockArgs args{};
            args.timeout_ms = request.timeout_ms;
            return lock_(pid, &args);
        }
        case Operation::kCheckpoint: {
            CheckpointArgs args{};
            return checkpoint_(pid, &args);
        }
        case Operation::kRestore: {
            RestoreArgs args{};
            args.pairs = request.pair_count > 0 ? request.pairs : nullptr;
            args.pair_count = std::min(request.pair_count, kMaxDevices);
            return restore_(pid, &args);
        }
        case Operation::kUnlock: {
            UnlockArgs args{};
            return unlock_(pid, &args);
        }
        default: break;
    }
    return kInvalidValue;
}

Answer Driver::serve(const Request& request) const {
    Answer answer;
    if (request.operation == Operation::kHello || request.operation == Operation::kMemory)
        answer = devices(request.operation == Operation::kMemory);
    else
        answer.code = call(request, answer);
    name_code(answer);
    return answer;
}

void Driver::name_code(Answer& answer) const {
    const char* name = nullptr;
    if (answer.code > kSuccess && answer.text[0] == 0 && get_name_(answer.code, &name) == kSuccess && name != nullptr)
        std::snprintf(answer.text, sizeof(answer.text), "%s", name);
}

}  // namespace checkpointd::cuda
