// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/amdgpu/held_process.h"

#include <cerrno>

namespace checkpointd::amdgpu {
namespace {

// What a process may have; more than this is a broken answer.
constexpr uint64_t kMostPrivate = 1ull << 30;

const char* remedy_for(int code) {
    switch (code) {
        case EACCES:
            return "the worker needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN";
        case EINVAL:
            return "look for amdgpu and kfd in the kernel's log";
        case EMFILE:
            return "raise LimitNOFILE= of the worker: each buffer takes a descriptor for a while";
        default:
            return "";
    }
}

}  // namespace

std::string HeldProcess::name() const {
    return pid() == 0 ? "a process on an AMD GPU" : fmt::format("pid {} (AMD GPU)", pid());
}

Result<void> HeldProcess::call(uint32_t operation, const char* name_of_call) {
    args_.op = operation;
    const int code = kfd_.criu_op(file_.get(), &args_);
    if (code == 0)
        return {};
    return tl::unexpected(system_error(name(), fmt::format("KFD's {} failed", name_of_call), -code)
                              .with_remedy(remedy_for(-code)));
}

Result<void> HeldProcess::pause() {
    paused_ = Paused::kPerhaps;
    CKPT_TRY(call(KFD_CRIU_OP_PROCESS_INFO, "PROCESS_INFO"));
    paused_ = Paused::kYes;
    if (args_.priv_data_size > kMostPrivate)
        return fail(ErrorKind::kSystem, name(),
                    fmt::format("has {} bytes of state in KFD", args_.priv_data_size));
    return {};
}

Result<void> HeldProcess::save() {
    devices_.reserve(args_.num_devices +
                     1);  // the kernel wants an address also where there is nothing
    devices_.assign(args_.num_devices, {});
    buffers_.reserve(args_.num_bos + 1);
    buffers_.assign(args_.num_bos, {});
    for (auto& buffer : buffers_)
        buffer.dmabuf_fd = KFD_INVALID_FD;
    private_data_.assign(args_.priv_data_size, '\0');
    args_.devices = reinterpret_cast<uint64_t>(devices_.data());
    args_.bos = reinterpret_cast<uint64_t>(buffers_.data());
    args_.priv_data = reinterpret_cast<uint64_t>(private_data_.data());
    CKPT_TRY(call(KFD_CRIU_OP_CHECKPOINT, "CHECKPOINT"));
    for (const auto& buffer : buffers_)
        dmabufs_.emplace_back(
            buffer.dmabuf_fd == KFD_INVALID_FD ? -1 : static_cast<int>(buffer.dmabuf_fd));
    return {};
}

Result<void> HeldProcess::unpause() {
    if (paused_ == Paused::kNo)
        return {};
    auto result = call(KFD_CRIU_OP_UNPAUSE, "UNPAUSE");
    if (!result &&
        !(paused_ == Paused::kPerhaps && result.error().errno_code == EINVAL))  // EINVAL: they run
        return result;
    paused_ = Paused::kNo;
    return {};
}

std::map<uint32_t, uint32_t> HeldProcess::names_of_gpus() const {
    std::map<uint32_t, uint32_t> names;
    for (const auto& device : devices_)
        names[device.actual_gpu_id] = device.user_gpu_id;
    return names;
}

}  // namespace checkpointd::amdgpu
