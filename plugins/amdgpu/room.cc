// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/amdgpu/room.h"

#include <thread>

#include "core/base/scoped_fd.h"
#include "core/kernel/room.h"
#include "plugins/amdgpu/topology.h"

namespace checkpointd::amdgpu {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kPause{50};
constexpr const char* kRemedy =
    "end what else uses it, or set plugins: {amdgpu: {check-memory: no}}";

uint64_t whole_mib(uint64_t bytes) {
    return (bytes + (1u << 20) - 1) >> 20;
}

Error too_little(std::string object, uint64_t has, uint64_t needed) {
    return Error{ErrorKind::kConflict,
                 std::move(object),
                 fmt::format("has {} MiB free of the {} MiB that the image needs", has >> 20,
                             whole_mib(needed)),
                 kRemedy,
                 0,
                 {}};
}

// Not what the driver has of the GPU (AMDGPU_INFO_MEMORY), of which it moves others' memory away:
// KFD has a limit of its own, and this is what is left of that.
std::vector<Error> look(const Kfd& kfd, int file, const NeededRoom& needed) {
    std::vector<Error> missing;
    for (const auto& [gpu_id, bytes] : needed.vram) {
        kfd_ioctl_get_available_memory_args args{};
        args.gpu_id = gpu_id;
        if (kfd.available_memory(file, &args) == 0 && args.available < bytes)
            missing.push_back(too_little(gpu_name(gpu_id), args.available, bytes));
    }
    const auto free = available_memory();
    if (free && *free < needed.host)
        missing.push_back(too_little("host memory, for buffers of GPUs", *free, needed.host));
    return missing;
}

}  // namespace

std::vector<Error> missing_room(const Kfd& kfd, const NeededRoom& needed,
                                std::chrono::milliseconds patience) {
    const ScopedFd own(kfd.open_kfd());
    const auto deadline = Clock::now() + patience;
    for (;;) {
        std::vector<Error> missing = look(kfd, own.get(), needed);
        if (missing.empty() || Clock::now() >= deadline)
            return missing;
        std::this_thread::sleep_for(kPause);
    }
}

}  // namespace checkpointd::amdgpu
