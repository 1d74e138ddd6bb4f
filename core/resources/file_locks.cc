// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/resources/file_locks.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/syscall.h>

#include <fmt/core.h>

#include "core/resources/open_file.h"

namespace checkpointd {

namespace {

// file_lock_entry.flag
constexpr uint32_t kPosix = 1;
constexpr uint32_t kFlock = 2;
constexpr uint32_t kOfd = 4;

std::vector<std::string_view> words(std::string_view line) {
    std::vector<std::string_view> all;
    while (true) {
        size_t first = line.find_first_not_of(" \t");
        if (first == std::string_view::npos)
            return all;
        line.remove_prefix(first);
        size_t end = line.find_first_of(" \t");
        all.push_back(line.substr(0, end));
        if (end == std::string_view::npos)
            return all;
        line.remove_prefix(end);
    }
}

uint32_t kind_of(std::string_view name) {
    if (name == "POSIX")
        return kPosix;
    if (name == "FLOCK")
        return kFlock;
    return name == "OFDLCK" ? kOfd : 0;
}

// "1: POSIX  ADVISORY  WRITE 812 fe:00:1234 0 EOF": Documentation/filesystems/proc.rst. fdinfo shows
// POSIX locks of this descriptor table, and the others of this open file.
void note_line(std::string_view line, const OpenFile& file, uint32_t file_id,
               FileDumpContext& context) {
    auto fields = words(line);
    auto start = fields.size() == 8 ? parse_number(fields[6], 10) : std::nullopt;
    uint32_t kind = start ? kind_of(fields[1]) : 0;
    if (kind == 0) {
        context.blocker(Error{ErrorKind::kUnsupported, file.object,
                              fmt::format("lock or lease of an unknown form ({})", line),
                              "let the program release it", 0, {}});
        return;
    }
    const FileTask* task = context.task(file.pid);
    auto last = parse_number(fields[7], 10);  // not a number: EOF
    images::file_lock_entry lock;
    lock.set_flag(kind);
    lock.set_type(fields[3] == "WRITE" ? F_WRLCK : F_RDLCK);
    lock.set_pid(task == nullptr ? file.pid : task->ns_pid);
    lock.set_fd(file.fd);
    lock.set_start(static_cast<int64_t>(*start));
    lock.set_len(last ? static_cast<int64_t>(*last - *start + 1) : 0);
    context.note_lock(file, file_id, lock);
}

}  // namespace

void collect_locks(const OpenFile& file, uint32_t file_id, FileDumpContext& context) {
    constexpr std::string_view key = "lock:";
    if (file.fdinfo.find("\nlock:") == std::string::npos)
        return;
    for_each_line(file.fdinfo, [&](std::string_view line) {
        if (line.starts_with(key))
            note_line(line.substr(key.size()), file, file_id, context);
    });
}

void plan_lock(const images::file_lock_entry& lock, Program& late, Plan& plan) {
    const std::string label = fmt::format("pid {} fd {}: lock", lock.pid(), lock.fd());
    if (lock.flag() & kFlock) {
        int how = (lock.type() == F_WRLCK ? LOCK_EX : LOCK_SH) | LOCK_NB;
        late.call(label, SYS_flock, {lock.fd(), how});
        return;
    }
    struct flock range {};
    range.l_type = static_cast<short>(lock.type());
    range.l_whence = SEEK_SET;
    range.l_start = lock.start();
    range.l_len = lock.len();
    late.call(label, SYS_fcntl,
              {lock.fd(), lock.flag() & kOfd ? F_OFD_SETLK : F_SETLK, plan.object(range)});
}

}  // namespace checkpointd
