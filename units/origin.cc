// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/origin.h"

#include <algorithm>
#include <fcntl.h>
#include <set>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/io.h"
#include "core/kernel/proc_maps.h"
#include "units/drop_in.h"

namespace checkpointd {
namespace {

constexpr std::string_view kOwnDropIns = "zz-checkpointd";
// Its files vanish with a transient unit; their text is in the image, and a restore brings it back.
constexpr std::string_view kTransientDir = "/run/systemd/transient/";
constexpr size_t kMaxUnitFile = 4u << 20;

std::string digest(const std::string& text) {
    XXH128_hash_t hash = XXH3_128bits(text.data(), text.size());
    return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

bool is_its_own(const std::string& path) {
    const std::string_view name = std::string_view(path).substr(path.rfind('/') + 1);
    return !path.empty() && !path.starts_with(kTransientDir) && !name.starts_with(kOwnDropIns);
}

Result<std::map<std::string, std::string>> read_unit_files(Systemd& systemd, const std::string& unit) {
    CKPT_ASSIGN(auto paths, systemd.list(unit, "Unit", "DropInPaths"));
    CKPT_ASSIGN(std::string fragment, systemd.text(unit, "Unit", "FragmentPath"));
    CKPT_ASSIGN(std::string source, systemd.text(unit, "Unit", "SourcePath"));
    paths.insert(paths.end(), {fragment, source});
    std::map<std::string, std::string> files;
    for (const std::string& path : paths) {
        if (!is_its_own(path))
            continue;
        auto text = read_file(AT_FDCWD, path, kMaxUnitFile);
        files[path] = text ? digest(*text) : "unreadable";
    }
    return files;
}

ProgramFile mark_of(const std::string& path, const struct stat& about) {
    return {path, static_cast<uint64_t>(about.st_size),
            static_cast<uint64_t>(about.st_mtim.tv_sec) * 1'000'000'000 +
                static_cast<uint64_t>(about.st_mtim.tv_nsec)};
}

// The mapped file itself, and the file of that name, must be one: the name may be the unit's own, and
// overlayfs shows a mapping under the inode of its lower layer.
bool is_named_on_host(pid_t pid, const ProcMapping& mapping, struct stat& about) {
    struct stat mapped;
    std::string link = fmt::format("/proc/{}/map_files/{:x}-{:x}", pid, mapping.start, mapping.end);
    if (stat(link.c_str(), &mapped) != 0 || stat(mapping.name.c_str(), &about) != 0)
        return false;
    return S_ISREG(about.st_mode) && mapped.st_size == about.st_size &&
           mapped.st_mtim.tv_sec == about.st_mtim.tv_sec && mapped.st_mtim.tv_nsec == about.st_mtim.tv_nsec;
}

Result<void> add_programs(pid_t pid, std::set<std::string>& seen, std::vector<ProgramFile>& out) {
    CKPT_ASSIGN(auto mappings, read_maps(pid));
    for (const ProcMapping& mapping : mappings) {
        struct stat about;
        bool is_code = (mapping.prot & PROT_EXEC) != 0 && mapping.name.starts_with('/');
        if (!is_code || seen.contains(mapping.name) || !is_named_on_host(pid, mapping, about))
            continue;
        seen.insert(mapping.name);
        out.push_back(mark_of(mapping.name, about));
    }
    return {};
}

Error changed(const std::string& path, std::string how) {
    return Error{ErrorKind::kConflict, path, std::move(how), {}, 0, {}};
}

void compare_unit_files(const std::map<std::string, std::string>& then,
                        const std::map<std::string, std::string>& now, std::vector<Error>& found) {
    for (const auto& [path, text] : then) {
        auto same = now.find(path);
        if (same == now.end())
            found.push_back(changed(path, "was part of the unit and is not any more"));
        else if (same->second != text)
            found.push_back(changed(path, "the unit file was changed"));
    }
    for (const auto& [path, text] : now)
        if (!then.contains(path))
            found.push_back(changed(path, "is part of the unit since"));
}

void compare_programs(const std::vector<ProgramFile>& then, std::vector<Error>& found) {
    for (const ProgramFile& file : then) {
        struct stat about;
        if (stat(file.path.c_str(), &about) != 0)
            found.push_back(changed(file.path, "the program or library is gone"));
        else if (mark_of(file.path, about) != file)
            found.push_back(changed(file.path, "the program or library was changed"));
    }
}

}  // namespace

Result<UnitOrigin> origin_of(Systemd& systemd, const std::string& unit, const std::vector<pid_t>& pids) {
    UnitOrigin origin;
    CKPT_ASSIGN(origin.unit_files, read_unit_files(systemd, unit));
    std::set<std::string> seen;
    for (pid_t pid : pids)
        CKPT_TRY(add_programs(pid, seen, origin.programs));
    return origin;
}

Result<void> check_origin(Systemd& systemd, const std::string& unit, const UnitOrigin& origin) {
    std::vector<Error> found;
    CKPT_ASSIGN(std::string load_state, systemd.text(unit, "Unit", "LoadState"));
    if (!origin.unit_files.empty() && load_state == "loaded") {
        CKPT_ASSIGN(auto now, read_unit_files(systemd, unit));
        compare_unit_files(origin.unit_files, now, found);
    }
    compare_programs(origin.programs, found);
    if (found.empty())
        return {};
    Error error{ErrorKind::kConflict, unit, "has changed since the checkpoint: " + found.front().line(), {}, 0,
                std::move(found)};
    return tl::unexpected(std::move(error));
}

}  // namespace checkpointd
