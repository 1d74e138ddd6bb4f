// SPDX-License-Identifier: LGPL-2.1-or-later
#include "service/worker/settle.h"

#include <chrono>
#include <string>

#include <fmt/core.h>

#include "core/transaction/recorded_process.h"
#include "units/pid_reservation.h"

namespace checkpointd {
namespace {

constexpr const char* kCheckpointKind = "service.settle-checkpoint";
constexpr const char* kSnapshotKind = "service.settle-snapshot";
constexpr const char* kRestoreKind = "service.settle-restore";
constexpr const char* kPidsKind = "service.settle-pids";
constexpr std::chrono::seconds kPatience{20};
constexpr const char *kYes = "yes", *kNo = "no";

// STORE, UNIT/ID, PID, START TIME; of a restore also the image's STATE and whether it is reused.
struct Subject {
    images::ImageStore store;
    images::ImageId id;
    bool alive;
};

Result<Subject> read_args(const UndoArgs& args) {
    if (args.size() < 4) return fail(ErrorKind::kInternal, "undo", "has the wrong arguments");
    CKPT_ASSIGN(auto store, images::ImageStore::open(args[0], false));
    CKPT_ASSIGN(auto id, images::parse_image_id(args[1]));
    CKPT_ASSIGN(const auto main, RecordedProcess::parse(args, 2));
    CKPT_ASSIGN(const bool alive, main.lives());
    return Subject{std::move(store), std::move(id), alive};
}

images::ImageState state_from(const std::string& name) {
    using images::ImageState;
    for (auto state : {ImageState::kPending, ImageState::kReady, ImageState::kConsumed})
        if (name == to_string(state)) return state;
    return ImageState::kStale;
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

Result<void> undo_restore(const UndoArgs& args) {
    if (args.size() != 6) return fail(ErrorKind::kInternal, "undo", "has the wrong arguments");
    CKPT_ASSIGN(auto subject, read_args(args));
    const bool reuse = args[5] == kYes;
    const auto state = subject.alive ? images::ImageState::kConsumed : state_from(args[4]);
    if (reuse || absent(subject.store.get(subject.id))) return {};
    return subject.store.set_state(subject.id, state, subject.alive ? "restored" : "");
}

Result<void> undo_pids(const UndoArgs& args) {
    if (args.size() != 3)
        return fail(ErrorKind::kInternal, "undo", "has the wrong arguments");
    CKPT_ASSIGN(auto store, images::ImageStore::open(args[0], false));
    CKPT_ASSIGN(auto id, images::parse_image_id(args[1]));
    CKPT_ASSIGN(auto systemd, Systemd::connect());
    auto image = store.get(id);
    if (!image || image->state != images::ImageState::kReady)
        return end_reservation(systemd, args[2]);
    // Should somebody else have taken them, the next restore says so.
    (void)reserve_again(systemd, args[2], std::chrono::steady_clock::now() + kPatience);
    return {};
}

Result<UndoArgs> name_subject(const std::string& store, const images::ImageId& image, pid_t main_pid) {
    UndoArgs args{store, image.text()};
    CKPT_TRY(RecordedProcess::append(args, main_pid));
    return args;
}

}  // namespace

void add_settle_undo_kinds(UndoTable& table) {
    table.add(kCheckpointKind, undo_checkpoint);
    table.add(kSnapshotKind, undo_snapshot);
    table.add(kRestoreKind, undo_restore);
    table.add(kPidsKind, undo_pids);
}

Result<uint64_t> settle_checkpoint(Journal& journal, const std::string& store,
                                   const images::ImageId& image, pid_t main_pid) {
    CKPT_ASSIGN(auto args, name_subject(store, image, main_pid));
    return journal.add(kCheckpointKind, std::move(args));
}

Result<uint64_t> settle_snapshot(Journal& journal, const std::string& store,
                                 const images::ImageId& image) {
    return journal.add(kSnapshotKind, {store, image.text()});
}

Result<uint64_t> settle_restore(Journal& journal, const std::string& store, const RestoredImage& restored,
                                pid_t main_pid) {
    CKPT_ASSIGN(auto args, name_subject(store, restored.image, main_pid));
    args.emplace_back(to_string(restored.before));
    args.emplace_back(restored.reuse ? kYes : kNo);
    return journal.add(kRestoreKind, std::move(args));
}

Result<uint64_t> settle_pids(Journal& journal, const std::string& store,
                             const images::ImageId& image, const images::ImageId& reserved) {
    return journal.add(kPidsKind, {store, image.text(), reserved.text()});
}

}  // namespace checkpointd
