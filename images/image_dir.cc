// SPDX-License-Identifier: LGPL-2.1-or-later
#include "images/image_dir.h"

#include <algorithm>
#include <cerrno>
#include <dirent.h>
#include <fcntl.h>
#include <memory>
#include <sys/stat.h>

#include "core/base/io.h"

namespace checkpointd::images {

namespace {

Error missing(std::string object) {
    return Error{ErrorKind::kBadImage, std::move(object), "the file is missing from the image",
                 "the image is incomplete; take another one", ENOENT, {}};
}

bool is_regular(int dir_fd, const char* name) {
    struct stat about {};
    return fstatat(dir_fd, name, &about, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(about.st_mode);
}

}  // namespace

Result<ImageDir> ImageDir::open(int at_fd, const std::string& path) {
    CKPT_ASSIGN(ScopedFd dir, open_at(at_fd, path, O_RDONLY | O_DIRECTORY));
    return ImageDir(std::move(dir), path);
}

ImageDir ImageDir::adopt(ScopedFd dir, std::string name) {
    return ImageDir(std::move(dir), std::move(name));
}

Result<ScopedFd> ImageDir::create_raw(ImageType type, uint64_t id) const {
    return open_at(dir_.get(), image_name(type, id),
                   O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW, 0600);
}

Result<ImageWriter> ImageDir::create(ImageType type, uint64_t id) const {
    CKPT_ASSIGN(ScopedFd file, create_raw(type, id));
    return ImageWriter::start(std::move(file), object(image_name(type, id)), type);
}

Result<void> ImageDir::write_one(ImageType type, uint64_t id,
                                 const google::protobuf::MessageLite& message) const {
    CKPT_ASSIGN(ImageWriter writer, create(type, id));
    CKPT_TRY(writer.record(message));
    return writer.finish();
}

Result<std::optional<ImageReader>> ImageDir::open_optional(ImageType type, uint64_t id) const {
    // O_NONBLOCK: a FIFO put there in place of a file must not make us wait.
    auto file = open_at(dir_.get(), image_name(type, id), O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
    if (!file && file.error().errno_code == ENOENT)
        return std::optional<ImageReader>{};
    if (!file)
        return tl::unexpected(std::move(file).error());
    CKPT_ASSIGN(ImageReader reader,
                ImageReader::start(std::move(*file), object(image_name(type, id)), type));
    return std::optional<ImageReader>(std::move(reader));
}

Result<ImageReader> ImageDir::open_image(ImageType type, uint64_t id) const {
    CKPT_ASSIGN(std::optional<ImageReader> reader, open_optional(type, id));
    if (!reader)
        return tl::unexpected(missing(object(image_name(type, id))));
    return std::move(*reader);
}

Result<ScopedFd> ImageDir::open_raw(ImageType type, uint64_t id) const {
    auto file = open_at(dir_.get(), image_name(type, id), O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
    if (!file && file.error().errno_code == ENOENT)
        return tl::unexpected(missing(object(image_name(type, id))));
    return file;
}

Result<std::vector<std::string>> ImageDir::file_names() const {
    CKPT_ASSIGN(ScopedFd copy, open_at(dir_.get(), ".", O_RDONLY | O_DIRECTORY));
    std::unique_ptr<DIR, int (*)(DIR*)> stream(fdopendir(copy.get()), closedir);
    if (!stream)
        return fail_errno(name_, "cannot list the image");
    copy.release();
    std::vector<std::string> names;
    errno = 0;
    while (const dirent* entry = readdir(stream.get())) {
        if (is_regular(dir_.get(), entry->d_name))
            names.emplace_back(entry->d_name);
        errno = 0;
    }
    if (errno != 0)
        return fail_errno(name_, "cannot list the image");
    std::ranges::sort(names);
    return names;
}

Result<std::vector<ImageName>> ImageDir::list() const {
    CKPT_ASSIGN(std::vector<std::string> names, file_names());
    std::vector<ImageName> images;
    for (const std::string& name : names) {
        if (auto image = parse_image_name(name); image)
            images.push_back(*image);
    }
    return images;
}

}  // namespace checkpointd::images
