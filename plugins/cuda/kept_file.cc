// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/kept_file.h"

#include <cstdio>
#include <fcntl.h>
#include <filesystem>
#include <unistd.h>

#include <fmt/core.h>

#include "core/base/io.h"
#include "core/kernel/liveness.h"

namespace checkpointd::cuda {
namespace {

constexpr const char* kFormat = ".gpu-memory-%d-%llu%n";  // PID, start time

bool is_of(const std::string& name, pid_t& pid, uint64_t& start) {
    unsigned long long number = 0;
    int end = 0;
    const bool is_it = std::sscanf(name.c_str(), kFormat, &pid, &number, &end) == 2 && name[static_cast<size_t>(end)] == 0;
    start = number;
    return is_it;
}

void sweep(const std::filesystem::path& folder) {
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
        pid_t pid = 0;
        uint64_t start = 0;
        if (!is_of(entry.path().filename(), pid, start))
            continue;
        if (const auto lives = process_lives(pid, start); lives && !*lives)
            drop_kept(entry.path());
    }
}

}  // namespace

Result<std::string> keep_file(int fd, pid_t pid, uint64_t start_time) {
    CKPT_ASSIGN(const std::string path, read_link(AT_FDCWD, fmt::format("/proc/self/fd/{}", fd)));
    const auto folder = std::filesystem::path(path).parent_path().parent_path();
    sweep(folder);
    const std::string kept = folder / fmt::format(".gpu-memory-{}-{}", pid, start_time);
    drop_kept(kept);  // of an earlier job
    return link(path.c_str(), kept.c_str()) == 0 ? kept : path;
}

void drop_kept(const std::string& path) {
    pid_t pid = 0;
    uint64_t start = 0;
    if (is_of(std::filesystem::path(path).filename(), pid, start))
        (void)unlink(path.c_str());
}

}  // namespace checkpointd::cuda
