// SPDX-License-Identifier: LGPL-2.1-or-later
#include "service/worker/settle.h"

#include <chrono>
#include <csignal>
#include <thread>

#include "core/kernel/proc_stat.h"
#include "core/kernel/proc_status.h"
#include "core/transaction/undo_kinds.h"
#include "units/systemd.h"

namespace checkpointd {
namespace {

constexpr const char* kCheckpointKind = "service.settle-checkpoint";
constexpr const char* kRestoreKind = "service.settle-restore";
constexpr std::chrono::seconds kPatience{30};

constexpr std::chrono::seconds kDyingTime{10};
constexpr uint32_t kExiting = 0x4;  // PF_EXITING, include/linux/sched.h

// Whether SIGKILL is on its way to the process: sent, not yet taken.
bool has_kill_pending(pid_t pid) {
    constexpr uint64_t kKillBit = uint64_t{1} << (SIGKILL - 1);
    auto status = read_status(pid);
    return status && ((status->sig_pending | status->shared_sig_pending) & kKillBit) != 0;
}

// Whether the process of that PID and start time lives on. Who died by our worker's death (EXITKILL) or by
// PID 1's hand may take a while to be gone, or stay as a zombie; SIGKILL was sent to it before we look. A
// task that sleeps without that signal and without having begun its exit was not sent one, since a signal
// that was sent wakes the task, which then runs until it is gone.
bool lives_on(pid_t pid, const std::string& started) {
    const auto give_up = std::chrono::steady_clock::now() + kDyingTime;
    for (;;) {
        auto stat = read_stat(pid);
        if (!stat || std::to_string(stat->start_time) != started) return false;
        if (stat->state == 'Z' || stat->state == 'X') return false;
        const bool is_dying = (stat->flags & kExiting) != 0 || has_kill_pending(pid);
        if (!is_dying && stat->state != 'R' && stat->state != 'D') return true;
        if (std::chrono::steady_clock::now() >= give_up) return !is_dying;
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
}

// STORE, UNIT/ID, PID, START TIME.
struct Subject {
    images::ImageStore store;
    images::ImageId id;
    bool alive;
};

Result<Subject> read_args(const UndoArgs& args) {
    if (args.size() != 4) return fail(ErrorKind::kInternal, "undo", "has the wrong arguments");
    CKPT_ASSIGN(auto store, images::ImageStore::open(args[0], false));
    CKPT_ASSIGN(auto id, images::parse_image_id(args[1]));
    const bool alive = lives_on(static_cast<pid_t>(std::stol(args[2])), args[3]);
    return Subject{std::move(store), std::move(id), alive};
}

bool absent(const Result<images::StoredImage>& image) {
    return !image && image.error().kind == ErrorKind::kNotFound;
}

Result<void> undo_checkpoint(const UndoArgs& args) {
    CKPT_ASSIGN(auto subject, read_args(args));
    CKPT_TRY(subject.store.clean());
    auto image = subject.store.get(subject.id);
    if (absent(image)) return {};
    if (!image) return tl::unexpected(std::move(image).error());
    if (image->state != images::ImageState::kPending && !image->damage) return {};
    if (subject.alive || image->damage) return subject.store.remove(subject.id);
    return subject.store.set_state(subject.id, images::ImageState::kReady,
                                   "its checkpoint was cut off after the unit had stopped");
}

Result<void> undo_restore(const UndoArgs& args) {
    CKPT_ASSIGN(auto subject, read_args(args));
    auto image = subject.store.get(subject.id);
    if (absent(image)) return {};
    if (subject.alive)
        return subject.store.set_state(subject.id, images::ImageState::kConsumed, "restored");
    CKPT_ASSIGN(auto systemd, Systemd::connect());
    return systemd.stop_and_forget(subject.id.unit, std::chrono::steady_clock::now() + kPatience);
}

Result<uint64_t> add(Journal& journal, const char* kind, const std::string& store,
                     const images::ImageId& image, pid_t main_pid) {
    CKPT_ASSIGN(const uint64_t started, process_start_time(main_pid));
    return journal.add(kind, {store, image.text(), std::to_string(main_pid), std::to_string(started)});
}

}  // namespace

void add_settle_undo_kinds(UndoTable& table) {
    table.add(kCheckpointKind, undo_checkpoint);
    table.add(kRestoreKind, undo_restore);
}

Result<uint64_t> settle_checkpoint(Journal& journal, const std::string& store,
                                   const images::ImageId& image, pid_t main_pid) {
    return add(journal, kCheckpointKind, store, image, main_pid);
}

Result<uint64_t> settle_restore(Journal& journal, const std::string& store,
                                const images::ImageId& image, pid_t main_pid) {
    return add(journal, kRestoreKind, store, image, main_pid);
}

}  // namespace checkpointd
