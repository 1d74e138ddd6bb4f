// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/pid_floor.h"

#include <algorithm>
#include <charconv>
#include <fcntl.h>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "core/base/io.h"

namespace checkpointd {
namespace {

namespace fs = std::filesystem;

// Fewer free numbers above the floor than this would only make the allocator wrap at once.
constexpr pid_t kLeastRoom = 4096;
constexpr const char* kIndexName = "checkpointd-image.json";

pid_t max_pid_of(const std::string& path) {
    auto text = read_file(AT_FDCWD, path, 1u << 20);
    if (!text)
        return 0;
    auto json = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("max_pid") || !json["max_pid"].is_number_unsigned())
        return 0;
    uint64_t value = json["max_pid"].get<uint64_t>();
    return value <= (1u << 22) ? static_cast<pid_t>(value) : 0;  // PID_MAX_LIMIT
}

Result<pid_t> read_number(const char* path) {
    CKPT_ASSIGN(std::string text, read_file(AT_FDCWD, path));
    pid_t value = 0;
    if (std::from_chars(text.data(), text.data() + text.size(), value).ec != std::errc())
        return fail(ErrorKind::kInternal, path, "does not hold a number");
    return value;
}

}  // namespace

Result<pid_t> highest_image_pid(const std::string& store) {
    pid_t highest = 0;
    std::error_code error;
    // STORE/UNIT/ID/checkpointd-image.json
    for (const auto& unit : fs::directory_iterator(store, error)) {
        std::error_code ignored;
        for (const auto& image : fs::directory_iterator(unit.path(), ignored))
            highest = std::max(highest, max_pid_of(image.path() / kIndexName));
    }
    if (error && error.value() != ENOENT)
        return fail_errno(store, "cannot list the image store", error.value());
    return highest;
}

Result<bool> raise_pid_floor(pid_t highest) {
    constexpr const char* kLastPid = "/proc/sys/kernel/ns_last_pid";
    CKPT_ASSIGN(pid_t last, read_number(kLastPid));
    if (highest <= last)
        return false;
    CKPT_ASSIGN(pid_t limit, read_number("/proc/sys/kernel/pid_max"));
    if (highest + kLeastRoom > limit)
        return fail(ErrorKind::kUnsupported, "PID floor",
                    fmt::format("images need PIDs up to {}, and kernel.pid_max is {}", highest, limit),
                    "raise kernel.pid_max by sysctl");
    CKPT_ASSIGN(ScopedFd file, open_at(AT_FDCWD, kLastPid, O_WRONLY));
    // One write(2): the kernel takes every write as a whole number.
    std::string text = std::to_string(highest);
    if (write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
        return fail_errno(kLastPid, "cannot raise the PID floor");
    return true;
}

}  // namespace checkpointd
