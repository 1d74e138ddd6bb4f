// SPDX-License-Identifier: LGPL-2.1-or-later
#include "service/armed_units.h"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <filesystem>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/io.h"

namespace checkpointd {
namespace {

Result<void> make_public_dir(const std::string& path) {
    // Not a secret, unlike all else that we make under our umask.
    if (mkdir(path.c_str(), 0755) == 0) (void)chmod(path.c_str(), 0755);
    else if (errno != EEXIST) return fail_errno(path, "cannot create the directory");
    return {};
}

}  // namespace

bool ArmedUnits::contains(const std::string& unit) const {
    return access((dir_ + "/" + unit).c_str(), F_OK) == 0;
}

std::vector<std::string> ArmedUnits::list() const {
    std::vector<std::string> units;
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(dir_, error)) {
        const std::string name = entry.path().filename();
        if (name.ends_with(".service")) units.push_back(name);
    }
    std::sort(units.begin(), units.end());
    return units;
}

Result<void> ArmedUnits::add(const std::string& unit) const {
    CKPT_TRY(make_public_dir(dir_.substr(0, dir_.rfind('/'))));
    CKPT_TRY(make_public_dir(dir_));
    CKPT_TRY(write_file(AT_FDCWD, dir_ + "/" + unit, "", 0644));
    CKPT_ASSIGN(auto folder, open_at(AT_FDCWD, dir_, O_RDONLY | O_DIRECTORY));
    if (fsync(folder.get()) < 0) return fail_errno(dir_, "cannot sync");
    return {};
}

Result<void> ArmedUnits::remove(const std::string& unit) const {
    if (unlink((dir_ + "/" + unit).c_str()) != 0 && errno != ENOENT)
        return fail_errno(dir_ + "/" + unit, "cannot remove");
    return {};
}

}  // namespace checkpointd
