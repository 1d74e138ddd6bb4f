// SPDX-License-Identifier: LGPL-2.1-or-later
#include "service/worker/settle.h"

#include <csignal>
#include <thread>

#include <fmt/format.h>

#include "core/kernel/proc_stat.h"
#include "core/kernel/proc_status.h"
#include "core/transaction/undo_kinds.h"
#include "units/systemd.h"

namespace checkpointd {
namespace {

constexpr const char* kCheckpointKind = "service.settle-checkpoint";
constexpr const char* kSnapshotKind = "service.settle-snapshot";
constexpr const char* kStopKind = "service.await-stop";
constexpr const char* kRestoreKind = "service.settle-restore";
constexpr std::chrono::seconds kPatience{30};
constexpr std::chrono::milliseconds kPollInterval{10};
constexpr uint32_t kExiting = 4;  // PF_EXITING of include/linux/sched.h
constexpr uint64_t kKillBit = uint64_t{1} << (SIGKILL - 1);

// Asks `condition` (Result<bool>) until it is true.
template <typename Condition>
Result<void> wait_until(const std::string& object, const char* what, Condition condition) {
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    for (;;) {
        CKPT_ASSIGN(const bool holds, condition());
        if (holds) return {};
        if (std::chrono::steady_clock::now() > deadline)
            return fail(ErrorKind::kTimeout, object, what);
        std::this_thread::sleep_for(kPollInterval);
    }
}

enum class Life { kRuns, kDies, kDead };

// SIGKILL is sent in an instant; freeing a large memory takes a while, in which the process is still there.
Life look_at(pid_t pid, const std::string& start_time) {
    auto stat = read_stat(pid);
    auto status = read_status(pid);
    if (!stat || !status || std::to_string(stat->start_time) != start_time) return Life::kDead;
    if (stat->state == 'Z' || stat->state == 'X') return Life::kDead;
    const uint64_t pending = status->sig_pending | status->shared_sig_pending;
    return (stat->flags & kExiting) || (pending & kKillBit) ? Life::kDies : Life::kRuns;
}

// Twice the same answer: between taking SIGKILL and beginning to exit a process looks alive.
Result<bool> lives(pid_t pid, const std::string& start_time) {
    Life last = Life::kDies;
    CKPT_TRY(wait_until(fmt::format("pid {}", pid), "was killed and does not die",
                        [&]() -> Result<bool> {
                            const Life now = look_at(pid, start_time);
                            const Life before = std::exchange(last, now);
                            return now == Life::kDead || (now == Life::kRuns && before == now);
                        }));
    return last == Life::kRuns;
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
    CKPT_ASSIGN(const bool alive, lives(static_cast<pid_t>(std::stol(args[2])), args[3]));
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

// The original is no reason to keep an image that nobody was told of, even if it has died by itself since.
Result<void> undo_snapshot(const UndoArgs& args) {
    if (args.size() != 2) return fail(ErrorKind::kInternal, "undo", "has the wrong arguments");
    CKPT_ASSIGN(auto store, images::ImageStore::open(args[0], false));
    CKPT_ASSIGN(auto id, images::parse_image_id(args[1]));
    CKPT_TRY(store.clean());
    auto image = store.get(id);
    if (absent(image)) return {};
    if (!image) return tl::unexpected(std::move(image).error());
    if (image->state != images::ImageState::kPending && !image->damage) return {};
    return store.remove(id);
}

Result<void> undo_await_stop(const UndoArgs& args) {
    if (args.size() != 1) return fail(ErrorKind::kInternal, "undo", "has the wrong arguments");
    CKPT_ASSIGN(auto systemd, Systemd::connect());
    return wait_until(args[0], "systemd does not come to an end with its stop",
                      [&]() -> Result<bool> {
                          CKPT_ASSIGN(const bool busy, systemd.has_job(args[0]));
                          return !busy;
                      });
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
    table.add(kSnapshotKind, undo_snapshot);
    table.add(kStopKind, undo_await_stop);
    table.add(kRestoreKind, undo_restore);
}

Result<uint64_t> await_stop(Journal& journal, const std::string& unit) {
    return journal.add(kStopKind, {unit});
}

Result<uint64_t> settle_checkpoint(Journal& journal, const std::string& store,
                                   const images::ImageId& image, pid_t main_pid) {
    return add(journal, kCheckpointKind, store, image, main_pid);
}

Result<uint64_t> settle_snapshot(Journal& journal, const std::string& store,
                                 const images::ImageId& image) {
    return journal.add(kSnapshotKind, {store, image.text()});
}

Result<uint64_t> settle_restore(Journal& journal, const std::string& store,
                                const images::ImageId& image, pid_t main_pid) {
    return add(journal, kRestoreKind, store, image, main_pid);
}

}  // namespace checkpointd
