// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "images/image_file.h"
#include "images/image_type.h"

namespace checkpointd::images {

// A directory of image files, held by descriptor. Symbolic links among the files are never followed.
class ImageDir {
  public:
    // `path` may be relative to `at_fd` (AT_FDCWD for the working directory).
    static Result<ImageDir> open(int at_fd, const std::string& path);
    // Takes over a directory that is already open; `name` is for errors.
    static ImageDir adopt(ScopedFd dir, std::string name);

    // Makes a new file of records, mode 0600; an existing one of that name is replaced.
    Result<ImageWriter> create(ImageType type, uint64_t id = 0) const;
    // Makes a new file without header: pages, and what other programs wrote.
    Result<ScopedFd> create_raw(ImageType type, uint64_t id = 0) const;
    // Makes a file of exactly one record.
    Result<void> write_one(ImageType type, uint64_t id,
                           const google::protobuf::MessageLite& message) const;

    // Opens a file that must be there: kBadImage if it is not.
    Result<ImageReader> open_image(ImageType type, uint64_t id = 0) const;
    // Opens a file that may be absent.
    Result<std::optional<ImageReader>> open_optional(ImageType type, uint64_t id = 0) const;
    Result<ScopedFd> open_raw(ImageType type, uint64_t id = 0) const;
    // The only record of a file that must be there.
    template <typename Message>
    Result<Message> read_one(ImageType type, uint64_t id = 0) const {
        CKPT_ASSIGN(ImageReader reader, open_image(type, id));
        return reader.only<Message>();
    }
    // All records of a file; none if the file is absent.
    template <typename Message>
    Result<std::vector<Message>> read_all(ImageType type, uint64_t id = 0) const {
        CKPT_ASSIGN(std::optional<ImageReader> reader, open_optional(type, id));
        if (!reader)
            return std::vector<Message>{};
        return reader->template rest<Message>();
    }

    // The image files that are there, sorted by name.
    Result<std::vector<ImageName>> list() const;
    // All regular files, images or not, sorted.
    Result<std::vector<std::string>> file_names() const;

    int fd() const { return dir_.get(); }
    const std::string& name() const { return name_; }

  private:
    ImageDir(ScopedFd dir, std::string name) : dir_(std::move(dir)), name_(std::move(name)) {}
    std::string object(const std::string& file) const { return name_ + "/" + file; }

    ScopedFd dir_;
    std::string name_;
};

}  // namespace checkpointd::images
