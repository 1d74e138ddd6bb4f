// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/gate.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <ctime>
#include <fcntl.h>
#include <filesystem>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/base/directory.h"
#include "core/base/io.h"
#include "images/image_store.h"
#include "units/drop_in.h"
#include "units/drop_in_file.h"

namespace checkpointd {
namespace {

static_assert(kGateStaged == SIGUSR1 && kGateCold == SIGUSR2);

constexpr const char* kRunDir = "/run/checkpointd";
constexpr const char* kNotesDir = "/run/checkpointd/cold";
constexpr time_t kNoteLifetime = 600;

Result<std::string> note_path(const std::string& unit) {
    if (!is_valid_unit_name(unit))
        return fail(ErrorKind::kBadInput, unit, "this is not a unit's name");
    return fmt::format("{}/{}", kNotesDir, unit);
}

bool runs_program(pid_t pid, const std::string& program) {
    struct stat wanted, seen;
    return stat(program.c_str(), &wanted) == 0 &&
           stat(fmt::format("/proc/{}/exe", pid).c_str(), &seen) == 0 &&
           wanted.st_dev == seen.st_dev && wanted.st_ino == seen.st_ino;
}

Result<void> write_gate(const std::string& directory, const std::string& unit) {
    return write_drop_in_file(fmt::format("{}/{}.d/{}", directory, unit, kGateDropInName), gate_drop_in(unit));
}

}  // namespace

std::string gate_drop_in(const std::string& unit, const std::string& gate) {
    DropIn text("Written by checkpointd's generator: this unit has an image, see checkpointd(8).");
    text.section("Service");
    text.set("ExecCondition", fmt::format("-+{} {}", gate, quote_literal_word(unit)));
    return text.text();
}

Result<std::vector<std::string>> write_gates(const std::string& store, const std::string& directory,
                                             const std::function<bool(const std::string& unit)>& is_reused) {
    auto opened = images::ImageStore::open(store, false);
    if (!opened && opened.error().errno_code == ENOENT)
        return std::vector<std::string>();
    if (!opened)
        return tl::unexpected(std::move(opened).error());
    CKPT_ASSIGN(auto stored, opened->list());
    std::vector<std::string> units;
    for (const images::StoredImage& image : stored) {
        const std::string& unit = image.id.unit;
        bool known = std::find(units.begin(), units.end(), unit) != units.end();
        if (image.damage || image.state != images::ImageState::kReady || known ||
            !is_valid_unit_name(unit) || !unit.ends_with(".service") || image.info.extra.contains(kNoUnitFile) ||
            !is_start_image(image.info.mode, is_reused(unit)))
            continue;
        CKPT_TRY(write_gate(directory, unit));
        units.push_back(unit);
    }
    return units;
}

Result<ScopedFd> find_gate(Systemd& systemd, const std::string& unit, const std::string& gate) {
    CKPT_ASSIGN(uint64_t number, systemd.number(unit, "Service", "ControlPID"));
    auto pid = static_cast<pid_t>(number);
    if (pid == 0)
        return ScopedFd();
    ScopedFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
    // Looked at with the pidfd in hand: the number may have a new owner.
    if (!pidfd || !runs_program(pid, gate))
        return ScopedFd();
    return pidfd;
}

Result<void> note_cold_start(const std::string& unit, const std::string& reason) {
    CKPT_ASSIGN(std::string path, note_path(unit));
    CKPT_TRY(make_directory(kRunDir, 0700));
    CKPT_TRY(make_directory(kNotesDir, 0700));
    auto file = open_at(AT_FDCWD, path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    if (!file && file.error().errno_code == EEXIST)
        return {};
    if (!file)
        return tl::unexpected(std::move(file).error());
    return write_all(file->get(), reason.data(), reason.size(), path);
}

std::optional<std::string> take_cold_note(const std::string& unit) {
    auto path = note_path(unit);
    struct stat about {};
    if (!path || stat(path->c_str(), &about) != 0)
        return std::nullopt;
    auto text = read_file(AT_FDCWD, *path, 64 << 10);
    unlink(path->c_str());
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    if (!text || now.tv_sec - about.st_mtim.tv_sec > kNoteLifetime)
        return std::nullopt;
    return std::move(*text);
}

}  // namespace checkpointd
