// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/pid_reservation.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cctype>
#include <cerrno>
#include <set>

#include "core/base/directory.h"
#include "core/base/io.h"
#include "core/kernel/proc_status.h"
#include "core/kernel/proc_task.h"
#include "units/placeholder.h"
#include "units/unit_process.h"

namespace checkpointd {
namespace {

// The unit has the file as its standard input.
constexpr const char* kDirectory = "/run/checkpointd/pids";
constexpr auto kPatience = std::chrono::seconds(10);

std::string escaped(std::string_view image) {
    std::string out;
    for (char c : image) {
        if (c == '/')
            out += '-';
        else if (std::isalnum(static_cast<unsigned char>(c)) || c == ':' || c == '_' || c == '.')
            out += c;
        else
            out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    }
    return out;
}

std::string file_of(std::string_view image) {
    return fmt::format("{}/{}", kDirectory, escaped(image));
}

Result<void> write_numbers(const std::string& image, const std::vector<pid_t>& numbers) {
    CKPT_TRY(make_directory(kDirectory, 0700));
    const std::string_view bytes(reinterpret_cast<const char*>(numbers.data()),
                                 numbers.size() * sizeof(pid_t));
    return write_file(AT_FDCWD, file_of(image), bytes);
}

Result<Placeholder> started(Systemd& systemd, const std::string& image, Deadline deadline) {
    const std::string unit = reservation_unit(image);
    CKPT_ASSIGN(const std::string job, systemd.start_unit(unit));
    CKPT_ASSIGN(const std::string result, systemd.wait_job(job, deadline));
    CKPT_ASSIGN(auto holder, find_placeholder(systemd, unit));
    if (result == "done" && holder)
        return std::move(*holder);
    return fail(ErrorKind::kSystem, unit, fmt::format("cannot be started: {}", result),
                "see systemctl status of it");
}

}  // namespace

std::string reservation_unit(std::string_view image) {
    return fmt::format("checkpointd-pids@{}.service", escaped(image));
}

std::vector<pid_t> numbers_of(const std::vector<pid_t>& pids) {
    std::set<pid_t> all;
    for (pid_t pid : pids) {
        for (pid_t tid : read_task_list(pid).value_or(std::vector<pid_t>()))
            all.insert(innermost_pid(tid));
        auto process = read_status(pid);
        if (!process)
            continue;
        for (const std::vector<pid_t>& group : {process->ns_pgids, process->ns_sids})
            if (!group.empty() && group.back() > 1 && access(fmt::format("/proc/{}", group.front()).c_str(), F_OK) != 0)
                all.insert(group.back());
    }
    return {all.begin(), all.end()};
}

Result<void> reserve_numbers(Systemd& systemd, const std::string& image,
                             const std::vector<pid_t>& numbers, Deadline deadline) {
    CKPT_TRY(write_numbers(image, numbers));
    return reserve_again(systemd, image, deadline);
}

bool has_reservation(const std::string& image) {
    return access(file_of(image).c_str(), F_OK) == 0;
}

Result<void> give_back_numbers(Systemd& systemd, const std::string& image, Deadline deadline) {
    CKPT_ASSIGN(auto holder, find_placeholder(systemd, reservation_unit(image)));
    return holder ? holder->give_back_numbers(deadline) : Result<void>();
}

Result<void> reserve_again(Systemd& systemd, const std::string& image, Deadline deadline) {
    CKPT_ASSIGN(auto holder, find_placeholder(systemd, reservation_unit(image)));
    if (!holder) {
        CKPT_ASSIGN(holder, started(systemd, image, deadline));
        CKPT_TRY(holder->wait_ready(deadline));
    }
    return holder->hold_numbers(deadline);
}

Result<void> end_reservation(Systemd& systemd, const std::string& image) {
    if (!has_reservation(image))
        return {};
    CKPT_ASSIGN(const std::string job, systemd.stop_unit(reservation_unit(image)));
    CKPT_TRY(systemd.wait_job(job, std::chrono::steady_clock::now() + kPatience));
    if (unlink(file_of(image).c_str()) != 0 && errno != ENOENT)
        return fail_errno(file_of(image), "cannot remove the file");
    return {};
}

}  // namespace checkpointd
