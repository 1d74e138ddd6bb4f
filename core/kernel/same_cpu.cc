// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/kernel/same_cpu.h"

#include "core/kernel/proc_stat.h"

namespace checkpointd {

SameCpu::SameCpu(pid_t tid) {
    auto stat = read_stat(tid);
    // A machine with more CPUs than cpu_set_t has bits fails the first call.
    if (!stat || stat->processor >= CPU_SETSIZE || sched_getaffinity(0, sizeof(before_), &before_) < 0) return;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(stat->processor, &one);
    is_bound_ = sched_setaffinity(0, sizeof(one), &one) == 0;
}

SameCpu::~SameCpu() {
    if (is_bound_) sched_setaffinity(0, sizeof(before_), &before_);
}

}  // namespace checkpointd
