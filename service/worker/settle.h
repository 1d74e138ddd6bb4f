// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Undo of what a job did to its image. What is right depends on whether the unit's processes live, and
// that is asked when the undo runs, not when it was written down.
#pragma once

#include <string>
#include <sys/types.h>

#include "core/transaction/journal.h"
#include "images/image_store.h"

namespace checkpointd {

// Adds service.settle-checkpoint, service.settle-snapshot, service.settle-restore and
// service.settle-pids. The actions open the store themselves.
void add_settle_undo_kinds(UndoTable& table);

// For a checkpoint of the process `main_pid`. Undo: partial images are removed; of a pending image the
// original's life decides: it lives, so the image is removed; it is dead, so the image is the only copy
// and becomes ready.
Result<uint64_t> settle_checkpoint(Journal& journal, const std::string& store,
                                   const images::ImageId& image, pid_t main_pid);

// For a checkpoint whose original goes on in any case. Undo: the image is removed unless it was ready.
Result<uint64_t> settle_snapshot(Journal& journal, const std::string& store,
                                 const images::ImageId& image);

// What a restore is about to do to its image.
struct RestoredImage {
    images::ImageId image;
    images::ImageState before = images::ImageState::kReady;
    bool reuse = false;    // it stays what it is
};

// For a restore whose main process is `main_pid`, right before the image is consumed and it may run: up to
// then it dies with the worker, and nothing is to be settled. Undo: it lives on, so the image is consumed; it
// died with the restore, so the image is what it was before.
Result<uint64_t> settle_restore(Journal& journal, const std::string& store, const RestoredImage& restored,
                                pid_t main_pid);

// Before the PIDs that are reserved for `reserved` are given back for a restore of `image`. Undo:
// that is ready still, so they are reserved again; it is consumed or gone, so they are not.
Result<uint64_t> settle_pids(Journal& journal, const std::string& store,
                             const images::ImageId& image, const images::ImageId& reserved);

}  // namespace checkpointd
