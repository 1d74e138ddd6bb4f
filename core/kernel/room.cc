// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/kernel/room.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <algorithm>
#include <optional>

#include "core/base/io.h"
#include "core/kernel/proc_text.h"

namespace checkpointd {
namespace {

// Of a file with a single number; none where it says "max", or is not there.
std::optional<uint64_t> read_number(const std::string& path) {
    auto text = read_file(AT_FDCWD, path);
    return text ? to_number<uint64_t>(trim(*text)) : std::nullopt;
}

// Behind `key` in lines of the form "key number".
std::optional<uint64_t> number_of(std::string_view text, std::string_view key) {
    while (auto line = next_line(text)) {
        std::string_view rest = *line;
        if (next_word(rest) == key)
            return next_number<uint64_t>(rest);
    }
    return std::nullopt;
}

uint64_t left(uint64_t limit, uint64_t used) {
    return limit > used ? limit - used : 0;
}

// memory.stat: "file" is the page cache, in which "shmem" cannot be dropped.
uint64_t used_memory(const std::string& path) {
    uint64_t used = read_number(path + "/memory.current").value_or(0);
    auto stat = read_file(AT_FDCWD, path + "/memory.stat");
    if (!stat)
        return used;
    uint64_t cache =
        left(number_of(*stat, "file").value_or(0), number_of(*stat, "shmem").value_or(0));
    return left(used, cache);
}

void narrow(Room& room, const std::string& path) {
    for (const char* name : {"/memory.max", "/memory.high"})
        if (auto limit = read_number(path + name))
            room.memory = std::min(room.memory, left(*limit, used_memory(path)));
    if (auto limit = read_number(path + "/pids.max"))
        room.tasks =
            std::min(room.tasks, left(*limit, read_number(path + "/pids.current").value_or(0)));
}

}  // namespace

Room cgroup_room(const std::string& path, const std::string& top) {
    Room room;
    for (std::string at = path; at.size() > top.size() && at.starts_with(top);
         at.resize(at.rfind('/')))
        narrow(room, at);
    return room;
}

Result<uint64_t> parse_available_memory(std::string_view meminfo) {
    auto kib = number_of(meminfo, "MemAvailable:");
    if (!kib)
        return fail(ErrorKind::kBadInput, "/proc/meminfo", "does not tell MemAvailable");
    return *kib * 1024;
}

Result<uint64_t> available_memory() {
    CKPT_ASSIGN(std::string text, read_file(AT_FDCWD, "/proc/meminfo"));
    return parse_available_memory(text);
}

bool memory_is_promised_in_full() {
    return read_number("/proc/sys/vm/overcommit_memory") == uint64_t{2};
}

}  // namespace checkpointd
