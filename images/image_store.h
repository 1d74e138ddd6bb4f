// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "images/image_dir.h"
#include "images/pending_image.h"

namespace checkpointd::images {

inline constexpr const char* kDefaultStoreRoot = "/var/lib/checkpointd";
inline constexpr const char* kImageInfoName = "checkpointd-image.json";

// What we know of an image beyond what the format carries. Fixed once the image is committed.
struct ImageInfo {
    std::string unit;            // "redis.service"; empty for images outside a store
    uint64_t created_usec = 0;   // CLOCK_REALTIME when the moment of the image was taken
    std::string mode;            // "stop", "suspend" or "snapshot"
    std::string boot_id;         // of the boot in which it was taken
    std::string kernel_release;  // uname -r
    std::string architecture;    // uname -m
    uint64_t bytes = 0;          // all image files together
    uint64_t duration_usec = 0;  // from the freeze until all was written
    uint64_t frozen_usec = 0;    // how long the unit stood still
    uint64_t max_pid = 0;        // the largest PID or TID in the image
    uint64_t main_pid = 0;       // of the unit; 0 where unknown
    std::vector<uint64_t> pids;  // all processes
    std::map<std::string, std::string> extra;  // free for callers: "unit-file-digest" ...
    bool operator==(const ImageInfo&) const = default;
};
std::string to_json(const ImageInfo& info);
Result<ImageInfo> parse_image_info(const std::string& text, const std::string& object);
// What this machine can say at once: time, boot id, kernel, architecture.
Result<ImageInfo> local_image_info();

enum class ImageState {
    kPending,   // committed, but its original may live on: must not be restored yet
    kReady,     // may be restored
    kConsumed,  // was restored
    kStale,     // the unit was started cold since, or its program or unit file changed
};
std::string_view to_string(ImageState state);

struct ImageId {
    std::string unit;
    std::string id;  // sorts by time
    bool operator==(const ImageId&) const = default;
    std::string text() const { return unit + "/" + id; }
};
// "redis.service/20260102T030405.123456Z" as text() makes it.
Result<ImageId> parse_image_id(const std::string& text);

struct StoredImage {
    ImageId id;
    ImageState state = ImageState::kPending;
    std::string state_reason;  // why it became stale, by which restore it was consumed; may be empty
    ImageInfo info;
    std::optional<Error> damage;  // set where state or info cannot be read; then they are empty
};

// Images on disk: ROOT/UNIT/ID/ is an image directory that other readers of the format may use as it is.
// The root belongs to root alone; whoever could write there could run code as any unit's user.
class ImageStore {
  public:
    // Opens the root; with `create` makes it (mode 0700) if it is missing. Denied: someone else may
    // write to it.
    static Result<ImageStore> open(const std::string& root, bool create);

    // Starts a new image of a unit. It is committed as kPending, by commit() here.
    Result<PendingImage> begin(const ImageId& id) const;
    // An id for an image taken now.
    static Result<ImageId> new_id(const std::string& unit);
    // Writes info and state, then commits.
    static Result<ImageDir> commit(PendingImage pending, const ImageInfo& info,
                                   const CommitOptions& options = {});

    // All images, or those of one unit, oldest first. Damaged ones are listed with their damage.
    Result<std::vector<StoredImage>> list(const std::optional<std::string>& unit = {}) const;
    Result<StoredImage> get(const ImageId& id) const;
    // The newest undamaged image of a unit in that state.
    Result<StoredImage> latest(const std::string& unit, ImageState state) const;
    Result<ImageDir> open_image(const ImageId& id) const;

    Result<void> set_state(const ImageId& id, ImageState state, const std::string& reason) const;
    Result<void> remove(const ImageId& id) const;
    // Removes what dead writers left; gives the number of directories.
    Result<unsigned> clean() const;

    int fd() const { return root_.get(); }
    const std::string& path() const { return path_; }

  private:
    ImageStore(ScopedFd root, std::string path) : root_(std::move(root)), path_(std::move(path)) {}
    Result<ScopedFd> unit_dir(const std::string& unit) const;
    Result<std::vector<std::string>> units() const;
    Result<void> list_unit(const std::string& unit, std::vector<StoredImage>& out) const;

    ScopedFd root_;
    std::string path_;
};

}  // namespace checkpointd::images
