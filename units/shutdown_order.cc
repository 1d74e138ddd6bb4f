// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/shutdown_order.h"

#include <cerrno>
#include <fcntl.h>
#include <filesystem>
#include <set>
#include <sys/stat.h>

#include "core/base/io.h"
#include "units/drop_in.h"
#include "units/drop_in_file.h"
#include "units/resolve.h"

namespace checkpointd {
namespace {

constexpr std::string_view kOwnUnits = "checkpointd";
constexpr std::string_view kRunning = "invocation:";
constexpr size_t kMaxScannedFile = 1u << 20;

bool is_service(const std::string& name) {
    return name.ends_with(".service") && is_valid_unit_name(name) && !name.starts_with(kOwnUnits);
}

// A masked unit is a link to /dev/null, which is no regular file.
bool waits_for_file_systems(const std::filesystem::directory_entry& file) {
    std::error_code error;
    if (!file.is_regular_file(error))
        return false;
    auto text = read_file(AT_FDCWD, file.path(), kMaxScannedFile);
    return text && text->find("\nDefaultDependencies=no") == std::string::npos;
}

}  // namespace

std::string shutdown_drop_in() {
    DropIn text("Written by checkpointd's generator: the policy wants this unit on disk when the system goes down.");
    text.section("Unit");
    text.set("Wants", kShutdownBeginUnit);
    text.set("Before", kShutdownUnit);
    return text.text();
}

std::vector<std::string> find_services(const std::vector<std::string>& unit_dirs,
                                       const std::string& running_dir) {
    std::set<std::string> names;
    std::error_code error;
    for (const std::string& dir : unit_dirs)
        for (const auto& file : std::filesystem::directory_iterator(dir, error))
            if (is_service(file.path().filename()) && waits_for_file_systems(file))
                names.insert(file.path().filename());
    for (const auto& link : std::filesystem::directory_iterator(running_dir, error)) {
        const std::string name = link.path().filename();
        if (!name.starts_with(kRunning))
            continue;
        const std::string unit = name.substr(kRunning.size());
        // An instance; of the others the unit file was found, or they do not count.
        if (is_service(unit) && unit.find('@') != std::string::npos)
            names.insert(unit);
    }
    return {names.begin(), names.end()};
}

Result<std::vector<std::string>> write_shutdown_order(const std::vector<std::string>& names,
                                                      const std::string& directory,
                                                      const std::function<bool(const std::string&)>& asks) {
    std::vector<std::string> written;
    for (const std::string& name : names) {
        if (!is_service(name) || !asks(name) || !why_never_stopped(name).empty())
            continue;
        CKPT_TRY(write_drop_in_file(fmt::format("{}/{}.d/{}", directory, name, kShutdownDropInName), shutdown_drop_in()));
        written.push_back(name);
    }
    return written;
}

}  // namespace checkpointd
