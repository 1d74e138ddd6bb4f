// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/restore/executor/task_numbers.h"

#include <fcntl.h>
#include <string>
#include <unistd.h>

#include <fmt/core.h>

#include "core/base/io.h"
#include "core/kernel/proc_status.h"
#include "core/kernel/proc_task.h"

namespace checkpointd {

TaskNumbers::TaskNumbers(bool differ) : differ_(differ) {
    if (!differ)
        return;
    if (auto own = read_status(getpid()))
        depth_ = own->ns_pids.size();
}

void TaskNumbers::learn(pid_t outer) {
    if (!differ_)
        return;
    auto status = read_status(outer);
    if (!status || status->ns_pids.size() <= depth_)
        return;
    inner_[outer] = status->ns_pids.back();
    outer_[status->ns_pids.back()] = outer;
}

pid_t TaskNumbers::inner(pid_t outer) const {
    if (!differ_)
        return outer;
    auto known = inner_.find(outer);
    return known == inner_.end() ? 0 : known->second;
}

pid_t TaskNumbers::outer(pid_t inner) const {
    if (!differ_)
        return inner;
    auto known = outer_.find(inner);
    return known == outer_.end() ? 0 : known->second;
}

bool is_traced_by_us(pid_t id) {
    auto status = read_file(AT_FDCWD, fmt::format("/proc/{}/status", id));
    if (!status)
        return false;
    return status->find(fmt::format("\nTracerPid:\t{}\n", gettid())) != std::string::npos ||
           status->find(fmt::format("\nTracerPid:\t{}\n", getpid())) != std::string::npos;
}

std::vector<pid_t> find_tracees() {
    std::vector<pid_t> found;
    for (pid_t pid : read_process_list().value_or(std::vector<pid_t>()))
        if (is_traced_by_us(pid))
            for (pid_t tid : read_task_list(pid).value_or(std::vector<pid_t>()))
                found.push_back(tid);
    return found;
}

}  // namespace checkpointd
