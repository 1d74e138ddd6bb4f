// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "images/image_dir.h"
#include "images/manifest.h"

namespace checkpointd::images {

struct CommitOptions {
    bool sync = true;      // fsync files and directories; off only for measurements
    bool digests = true;   // otherwise the manifest has names and sizes only
    unsigned threads = 1;  // for digests of files that come without
};

// An image in the making: a directory `.NAME.partial-XXXXXX` beside its final place. It becomes visible
// whole, by commit(), or not at all: the destructor removes it, and remove_partials() removes what a
// process that died left behind.
class PendingImage {
  public:
    // `parent_fd` is duplicated. The final name must be free when the image is committed.
    static Result<PendingImage> begin(int parent_fd, const std::string& name);

    PendingImage(PendingImage&&) = default;
    PendingImage& operator=(PendingImage&&) = delete;
    ~PendingImage();

    const ImageDir& dir() const { return dir_; }
    // A file of our own beside the images.
    Result<void> add_file(const std::string& name, std::string_view content);
    // Digests that a writer computed while it wrote; commit() computes all others.
    void add_digest(FileDigest digest) { known_.push_back(std::move(digest)); }

    // Syncs every file, writes the manifest, renames, syncs the parent. On failure nothing is left.
    // Conflict: an image of that name is there already.
    Result<ImageDir> commit(const CommitOptions& options = {});

  private:
    PendingImage(ScopedFd parent, ImageDir dir, std::string partial, std::string name)
        : parent_(std::move(parent)),
          dir_(std::move(dir)),
          partial_(std::move(partial)),
          name_(std::move(name)) {}
    Result<Manifest> make_manifest(const std::vector<std::string>& names,
                                   const CommitOptions& options) const;
    Result<void> publish(bool sync);

    ScopedFd parent_;  // -1 once committed or moved from
    ImageDir dir_;     // locked by flock(2) as long as we live
    std::string partial_;
    std::string name_;
    std::vector<FileDigest> known_;
};

// Removes what dead writers left in `parent_fd`; images that a living process still writes are locked
// and stay. Gives the number removed.
Result<unsigned> remove_partials(int parent_fd);

// Removes a directory with everything in it; symbolic links are removed, not followed.
Result<void> remove_tree(int parent_fd, const std::string& name);

// Replaces a small file so that readers see the old content or the new, never a part.
Result<void> replace_file(int dir_fd, const std::string& name, std::string_view content, bool sync);

}  // namespace checkpointd::images
