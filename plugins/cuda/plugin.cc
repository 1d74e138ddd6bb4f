// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The C side of the CUDA plugin.
#include "plugins/plugin.h"

#include "plugins/cuda/session.h"
#include "plugins/cuda/undo.h"
#include "plugins/cuda/undo_record.h"
#include "plugins/host/deadline.h"
#include "plugins/host/tell.h"

namespace checkpointd::cuda {
namespace {

Session& of(void* self) { return *static_cast<Session*>(self); }

std::vector<pid_t> list(const pid_t* pids, size_t count) { return {pids, pids + count}; }

Session::Deadline deadline_of(const ckptd_call* call) { return to_deadline(call->deadline_usec); }

int open(const ckptd_host* host, ckptd_purpose purpose, ckptd_call* call, void** self) {
    auto session = Session::open(*host, purpose);
    if (!session)
        return tell(call, session.error());
    *self = session->release();
    return *self == nullptr ? 1 : 0;
}

void close(void* self) { delete static_cast<Session*>(self); }

int probe(void* self, const pid_t* pids, size_t count, ckptd_call* call) {
    auto used = of(self).probe(list(pids, count), deadline_of(call));
    return used ? (*used ? 1 : 0) : tell(call, used.error());
}

int quiesce(void* self, const pid_t*, size_t, ckptd_call* call) {
    return tell(call, of(self).quiesce(*call, deadline_of(call)));
}

int prepare(void* self, const pid_t* pids, size_t count, ckptd_call* call) {
    return tell(call, of(self).prepare(list(pids, count), *call, deadline_of(call)));
}

int transfer(void* self, ckptd_call* call) { return tell(call, of(self).transfer(*call)); }

int complete(void* self, ckptd_call* call) { return tell(call, of(self).complete(deadline_of(call))); }

int resume(void* self, const pid_t* pids, size_t count, ckptd_call* call) {
    return tell(call, of(self).resume(*call, list(pids, count), deadline_of(call)));
}

int undo(const char* record, ckptd_call* call) { return tell(call, undo_recorded(record, deadline_of(call))); }

uint64_t undo_usec(const char* record) {
    const auto known = UndoRecord::parse(record);
    return known ? static_cast<uint64_t>(known->undo_time().count()) : 0;
}

constexpr ckptd_plugin kPlugin = {
    .size = sizeof(ckptd_plugin),
    .abi = CKPTD_PLUGIN_ABI,
    .needs = 0,
    .name = "cuda",
    .description = "State of NVIDIA GPUs, by the checkpoint calls of their driver",
    .settings = kSettingNames,
    .open = open,
    .close = close,
    .probe = probe,
    .quiesce = quiesce,
    .prepare = prepare,
    .transfer = transfer,
    .complete = complete,
    .resume = resume,
    .in_task = nullptr,
    .undo = undo,
    .dump_file = nullptr,
    .handle_vma = nullptr,
    .restore_file = nullptr,
    .update_vma = nullptr,
    .undo_usec = undo_usec,
};

}  // namespace
}  // namespace checkpointd::cuda

extern "C" const ckptd_plugin* ckptd_plugin_entry(void) { return &checkpointd::cuda::kPlugin; }
