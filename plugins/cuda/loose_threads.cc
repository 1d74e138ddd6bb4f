// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/loose_threads.h"

#include <cerrno>

#include "plugins/host/deadline.h"

namespace checkpointd::cuda {
namespace {

tl::unexpected<Error> failed(pid_t pid, std::string what) {
    return fail_errno(fmt::format("pid {} (CUDA)", pid), std::move(what));
}

}  // namespace

Result<void> LooseThreads::run(const ckptd_host& host, pid_t pid, pid_t tid) {
    if (loose_.contains(pid))
        return {};
    if (host.run_thread(host.context, pid, tid) == 0)
        loose_[pid] = {&host, tid};
    else if (errno != EBUSY)
        return failed(pid, fmt::format("cannot let its thread {} run", tid));
    return {};
}

Result<void> LooseThreads::hold(pid_t pid, std::chrono::steady_clock::time_point deadline) {
    auto found = loose_.find(pid);
    if (found == loose_.end())
        return {};
    const auto [host, tid] = found->second;
    loose_.erase(found);
    if (host->hold_thread(host->context, pid, tid, deadline_usec(deadline)) != 0)
        return failed(pid, fmt::format("cannot stop its thread {} again", tid));
    return {};
}

// What has become of one, the driver says.
void LooseThreads::tend() const {
    for (const auto& [pid, loose] : loose_)
        (void)loose.host->run_thread(loose.host->context, pid, loose.tid);
}

}  // namespace checkpointd::cuda
