// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/restore/executor/task_numbers.h"

#include <charconv>
#include <dirent.h>
#include <fcntl.h>
#include <memory>
#include <string>
#include <unistd.h>

#include <fmt/core.h>

#include "core/base/io.h"
#include "core/kernel/proc_status.h"

namespace checkpointd {

namespace {

struct CloseDir {
    void operator()(DIR* dir) const { closedir(dir); }
};

std::vector<pid_t> numbers_in(const std::string& path) {
    std::vector<pid_t> numbers;
    std::unique_ptr<DIR, CloseDir> dir(opendir(path.c_str()));
    while (dirent* entry = dir ? readdir(dir.get()) : nullptr) {
        std::string_view name = entry->d_name;
        pid_t number = 0;
        if (std::from_chars(name.data(), name.data() + name.size(), number).ec == std::errc{})
            numbers.push_back(number);
    }
    return numbers;
}

}  // namespace

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
    for (pid_t pid : numbers_in("/proc"))
        if (is_traced_by_us(pid))
            for (pid_t tid : numbers_in(fmt::format("/proc/{}/task", pid)))
                found.push_back(tid);
    return found;
}

}  // namespace checkpointd
