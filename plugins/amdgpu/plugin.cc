// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The C side of the AMDGPU plugin.
#include "plugins/plugin.h"

#include <unistd.h>

#include "plugins/amdgpu/checkpoint.h"
#include "plugins/amdgpu/restore.h"
#include "plugins/host/deadline.h"
#include "plugins/host/tell.h"

namespace checkpointd::amdgpu {
namespace {

// One job.
struct Session {
    Settings settings;
    std::unique_ptr<Kfd> kfd;
    std::unique_ptr<Checkpoint> checkpoint;  // one of the two
    std::unique_ptr<Restore> restore;
};

Session& of(void* self) {
    return *static_cast<Session*>(self);
}

std::vector<pid_t> list(const pid_t* pids, size_t count) {
    return {pids, pids + count};
}

// Of ours or not ours: 0 and 1.
int answer(const ckptd_call* call, const Result<bool>& result) {
    return result ? (*result ? 0 : 1) : tell(call, result.error());
}

int open(const ckptd_host* host, ckptd_purpose purpose, ckptd_call* call, void** self) {
    auto settings =
        Settings::read([&](const char* name) { return host->setting(host->context, name); });
    if (!settings)
        return tell(call, settings.error());
    auto session =
        std::make_unique<Session>(Session{std::move(*settings), make_kfd(), nullptr, nullptr});
    const ScopedFd device(session->kfd->open_kfd());
    if (device.get() == -ENOENT || device.get() == -ENXIO || device.get() == -ENODEV)
        return 1;
    if (purpose == CKPTD_CHECKPOINT)
        session->checkpoint = std::make_unique<Checkpoint>(*host, *session->kfd, session->settings);
    else
        session->restore = std::make_unique<Restore>(*host, *session->kfd, session->settings);
    *self = session.release();
    return 0;
}

void close(void* self) {
    delete static_cast<Session*>(self);
}

int probe(void* self, const pid_t* pids, size_t count, ckptd_call* call) {
    if (of(self).restore)
        return tell(call, of(self).restore->probe()) == 0 ? 1 : -1;
    auto used = of(self).checkpoint->probe(list(pids, count));
    return used ? (*used ? 1 : 0) : tell(call, used.error());
}

int prepare(void* self, const pid_t* pids, size_t count, ckptd_call* call) {
    return tell(call, of(self).restore ? of(self).restore->prepare()
                                       : of(self).checkpoint->prepare(list(pids, count)));
}

int dump_file(void* self, pid_t pid, int fd, uint32_t id, ckptd_call* call) {
    return answer(call, of(self).checkpoint->dump_file(pid, fd, id));
}

int handle_vma(void* self, pid_t pid, const ckptd_vma* vma, ckptd_call* call) {
    return answer(call, of(self).checkpoint->handle_vma(pid, *vma));
}

size_t count_gpus(const Session& session) {
    auto topology = read_topology(session.kfd->topology_root());
    return topology ? std::max<size_t>(1, topology->gpu_count()) : 1;
}

int transfer(void* self, ckptd_call* call) {
    const Session& session = of(self);
    TransferOptions options;
    options.staging_bytes = session.settings.staging_bytes;
    options.pieces = session.settings.is_parallel ? 4 : 1;
    options.gpu_count = count_gpus(session);
    options.copy_timeout = session.settings.copy_timeout;
    options.deadline = to_deadline(call->deadline_usec);
    options.cancel_fd = call->cancel_fd;
    options.progress = [call](uint64_t done, uint64_t total) { call->progress(call, done, total); };
    return tell(call, session.restore ? session.restore->transfer(options)
                                      : session.checkpoint->transfer(options));
}

int complete(void* self, ckptd_call* call) {
    return of(self).restore ? 0 : tell(call, of(self).checkpoint->complete());
}

int resume(void* self, const pid_t* pids, size_t count, ckptd_call* call) {
    return tell(call, of(self).restore ? of(self).restore->resume(list(pids, count))
                                       : of(self).checkpoint->resume());
}

int restore_file(void* self, pid_t pid, uint32_t id) {
    return of(self).restore->restore_file(pid, id);
}

int update_vma(void* self, pid_t pid, ckptd_vma* vma) {
    return of(self).restore->update_vma(pid, vma);
}

int undo(const char* record, ckptd_call* call) {
    return tell(call, undo_pause(*make_kfd(), record));
}

constexpr ckptd_plugin kPlugin = {
    .size = sizeof(ckptd_plugin),
    .abi = CKPTD_PLUGIN_ABI,
    .needs = CKPTD_NEEDS_CONTENTS,
    .name = "amdgpu",
    .description = "State of AMD GPUs that are used through ROCm, by the checkpoint calls of KFD",
    .settings = kSettingNames,
    .open = open,
    .close = close,
    .probe = probe,
    .quiesce = nullptr,
    .prepare = prepare,
    .transfer = transfer,
    .complete = complete,
    .resume = resume,
    .in_task = nullptr,
    .undo = undo,
    .dump_file = dump_file,
    .handle_vma = handle_vma,
    .restore_file = restore_file,
    .update_vma = update_vma,
    .undo_usec = nullptr,  // UNPAUSE moves no contents
};

}  // namespace
}  // namespace checkpointd::amdgpu

extern "C" const ckptd_plugin* ckptd_plugin_entry(void) {
    return &checkpointd::amdgpu::kPlugin;
}
