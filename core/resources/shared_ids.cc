// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/resources/shared_ids.h"

#include <algorithm>
#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fmt/core.h>

namespace checkpointd {

Result<int> kcmp_order(pid_t first, pid_t second, int type, uint64_t index1, uint64_t index2) {
    long order = syscall(SYS_kcmp, first, second, type, index1, index2);
    if (order < 0)
        return fail_errno(fmt::format("pids {} and {}", first, second), "kcmp");
    return static_cast<int>(order);
}

Result<size_t> KernelOrder::find(pid_t pid, uint64_t index, bool* found) const {
    size_t low = 0;
    size_t high = members_.size();
    *found = false;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const Member& member = members_[middle];
        CKPT_ASSIGN(int order, kcmp_order(pid, member.pid, type_, index, member.index));
        if (order == 0) {
            *found = true;
            return middle;
        }
        if (order == 3)
            return fail(ErrorKind::kInternal, fmt::format("pids {} and {}", pid, member.pid),
                        "kcmp gives no order");
        if (order == 1)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

Result<uint32_t> KernelOrder::id_of(pid_t pid, uint64_t index, uint32_t fresh_id, bool* is_new) {
    bool found = false;
    CKPT_ASSIGN(size_t at, find(pid, index, &found));
    *is_new = !found;
    if (!found)
        members_.insert(members_.begin() + static_cast<ptrdiff_t>(at), {pid, index, fresh_id});
    return members_[at].id;
}

Result<uint32_t> SharedIds::of(pid_t pid, bool* is_new) {
    bool fresh = false;
    CKPT_ASSIGN(uint32_t id, order_.id_of(pid, 0, next_, &fresh));
    if (fresh)
        ++next_;
    if (is_new != nullptr)
        *is_new = fresh;
    return id;
}

}  // namespace checkpointd
