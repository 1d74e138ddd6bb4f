// SPDX-License-Identifier: LGPL-2.1-or-later
#include "images/pending_image.h"

#include <algorithm>
#include <cerrno>
#include <dirent.h>
#include <fcntl.h>
#include <memory>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/io.h"

namespace checkpointd::images {

namespace {

constexpr const char* kPartialMark = ".partial-";
constexpr unsigned kMaxDepth = 16;  // image directories are flat; this only bounds the recursion

std::string random_suffix() {
    uint32_t bits = 0;
    // Never blocks nor fails for so few bytes once the machine is up (getrandom(2)).
    (void)!getrandom(&bits, sizeof(bits), 0);
    return fmt::format("{:08x}", bits);
}

bool is_partial(std::string_view name) {
    return name.starts_with('.') && name.find(kPartialMark) != std::string_view::npos;
}

// A separate open file description, so that its flock(2) is its own.
Result<ScopedFd> reopen(int dir_fd) { return open_at(dir_fd, ".", O_RDONLY | O_DIRECTORY); }

Result<void> lock(int fd, int operation, const std::string& object) {
    while (flock(fd, operation) != 0) {
        if (errno != EINTR)
            return fail_errno(object, "cannot lock");
    }
    return {};
}

Result<void> sync_fd(int fd, const std::string& object) {
    if (fsync(fd) != 0)
        return fail_errno(object, "cannot sync to disk");
    return {};
}

Result<void> sync_member(int dir_fd, const std::string& name) {
    CKPT_ASSIGN(ScopedFd file, open_at(dir_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK));
    return sync_fd(file.get(), name);
}

struct Listed {
    std::string name;
    bool directory;
};

Result<std::vector<Listed>> list_all(int dir_fd, const std::string& object) {
    CKPT_ASSIGN(ScopedFd copy, reopen(dir_fd));
    std::unique_ptr<DIR, int (*)(DIR*)> stream(fdopendir(copy.get()), closedir);
    if (!stream)
        return fail_errno(object, "cannot list");
    copy.release();
    std::vector<Listed> found;
    while (const dirent* entry = readdir(stream.get())) {
        std::string_view name = entry->d_name;
        struct stat about {};
        if (name == "." || name == ".." ||
            fstatat(dir_fd, entry->d_name, &about, AT_SYMLINK_NOFOLLOW) != 0)
            continue;
        found.push_back({std::string(name), S_ISDIR(about.st_mode)});
    }
    return found;
}

Result<void> unlink_at(int dir_fd, const std::string& name, int flags) {
    if (unlinkat(dir_fd, name.c_str(), flags) != 0 && errno != ENOENT)
        return fail_errno(name, "cannot remove");
    return {};
}

Result<void> remove_content(int dir_fd, const std::string& object, unsigned depth) {
    if (depth == 0)
        return fail(ErrorKind::kBadInput, object, "nested too deeply to be an image");
    CKPT_ASSIGN(std::vector<Listed> entries, list_all(dir_fd, object));
    for (const Listed& entry : entries) {
        if (entry.directory) {
            CKPT_ASSIGN(ScopedFd inner, open_at(dir_fd, entry.name,
                                                O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
            CKPT_TRY(remove_content(inner.get(), entry.name, depth - 1));
        }
        CKPT_TRY(unlink_at(dir_fd, entry.name, entry.directory ? AT_REMOVEDIR : 0));
    }
    return {};
}

// RENAME_NOREPLACE is not known to every file system; plain rename(2) at least never replaces a
// directory that has something in it.
int rename_exclusively(int dir_fd, const std::string& from, const std::string& to) {
    int result = renameat2(dir_fd, from.c_str(), dir_fd, to.c_str(), RENAME_NOREPLACE);
    if (result != 0 && (errno == EINVAL || errno == ENOSYS))
        result = renameat(dir_fd, from.c_str(), dir_fd, to.c_str());
    return result;
}

}  // namespace

Result<PendingImage> PendingImage::begin(int parent_fd, const std::string& name) {
    CKPT_ASSIGN(ScopedFd parent, reopen(parent_fd));
    // Shared: keeps remove_partials() away between making the directory and locking it.
    CKPT_TRY(lock(parent.get(), LOCK_SH, name));
    std::string partial = "." + name + kPartialMark + random_suffix();
    if (mkdirat(parent.get(), partial.c_str(), 0700) != 0)
        return fail_errno(partial, "cannot make a directory for the image");
    auto dir = open_at(parent.get(), partial, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    if (!dir) {
        (void)unlink_at(parent.get(), partial, AT_REMOVEDIR);
        return tl::unexpected(std::move(dir).error());
    }
    PendingImage pending(std::move(parent), ImageDir::adopt(std::move(*dir), partial), partial,
                         name);
    CKPT_TRY(lock(pending.dir_.fd(), LOCK_EX | LOCK_NB, partial));
    CKPT_TRY(lock(pending.parent_.get(), LOCK_UN, name));
    return pending;
}

PendingImage::~PendingImage() {
    if (parent_)
        (void)remove_tree(parent_.get(), partial_);
}

Result<void> PendingImage::add_file(const std::string& name, std::string_view content) {
    CKPT_ASSIGN(ScopedFd file, open_at(dir_.fd(), name,
                                       O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0600));
    return write_all(file.get(), content.data(), content.size(), name);
}

Result<Manifest> PendingImage::make_manifest(const std::vector<std::string>& names,
                                             const CommitOptions& options) const {
    Manifest manifest;
    for (const std::string& name : names) {
        if (name == kStateName)
            continue;
        auto known = std::ranges::find(known_, name, &FileDigest::name);
        if (known != known_.end()) {
            manifest.files.push_back(*known);
            continue;
        }
        if (options.digests) {
            CKPT_ASSIGN(FileDigest digest, digest_file(dir_, name, options.threads));
            manifest.files.push_back(std::move(digest));
            continue;
        }
        struct stat about {};
        if (fstatat(dir_.fd(), name.c_str(), &about, AT_SYMLINK_NOFOLLOW) != 0)
            return fail_errno(name, "cannot stat");
        manifest.files.push_back({name, static_cast<uint64_t>(about.st_size), {}});
    }
    return manifest;
}

Result<ImageDir> PendingImage::commit(const CommitOptions& options) {
    CKPT_ASSIGN(std::vector<std::string> names, dir_.file_names());
    CKPT_ASSIGN(Manifest manifest, make_manifest(names, options));
    if (options.sync) {
        for (const std::string& name : names)
            CKPT_TRY(sync_member(dir_.fd(), name));
    }
    CKPT_TRY(add_file(kManifestName, to_json(manifest)));
    if (options.sync) {
        CKPT_TRY(sync_member(dir_.fd(), kManifestName));
        CKPT_TRY(sync_fd(dir_.fd(), partial_));
    }
    CKPT_TRY(publish(options.sync));
    CKPT_ASSIGN(ScopedFd dir, reopen(dir_.fd()));
    return ImageDir::adopt(std::move(dir), name_);
}

Result<void> PendingImage::publish(bool sync) {
    if (rename_exclusively(parent_.get(), partial_, name_) != 0) {
        if (errno == EEXIST || errno == ENOTEMPTY)
            return fail(ErrorKind::kConflict, name_, "an image of this name exists already",
                        "remove it or choose another directory");
        return fail_errno(name_, "cannot put the finished image in its place");
    }
    ScopedFd parent = std::move(parent_);
    if (!sync)
        return {};
    return sync_fd(parent.get(), name_);
}

Result<unsigned> remove_partials(int parent_fd) {
    CKPT_ASSIGN(ScopedFd parent, reopen(parent_fd));
    CKPT_TRY(lock(parent.get(), LOCK_EX, "partial images"));
    CKPT_ASSIGN(std::vector<Listed> entries, list_all(parent.get(), "partial images"));
    unsigned removed = 0;
    for (const Listed& entry : entries) {
        if (!entry.directory || !is_partial(entry.name))
            continue;
        CKPT_ASSIGN(ScopedFd partial, open_at(parent.get(), entry.name,
                                              O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
        if (flock(partial.get(), LOCK_EX | LOCK_NB) != 0)
            continue;  // its writer lives
        CKPT_TRY(remove_tree(parent.get(), entry.name));
        ++removed;
    }
    return removed;
}

Result<void> remove_tree(int parent_fd, const std::string& name) {
    auto dir = open_at(parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    if (!dir && dir.error().errno_code == ENOENT)
        return {};
    if (!dir)
        return tl::unexpected(std::move(dir).error());
    CKPT_TRY(remove_content(dir->get(), name, kMaxDepth));
    return unlink_at(parent_fd, name, AT_REMOVEDIR);
}

Result<void> replace_file(int dir_fd, const std::string& name, std::string_view content,
                          bool sync) {
    std::string temporary = "." + name + "." + random_suffix();
    CKPT_ASSIGN(ScopedFd file, open_at(dir_fd, temporary,
                                       O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600));
    Result<void> done = write_all(file.get(), content.data(), content.size(), name);
    if (done && sync)
        done = sync_fd(file.get(), name);
    if (done && renameat(dir_fd, temporary.c_str(), dir_fd, name.c_str()) != 0)
        done = fail_errno(name, "cannot replace");
    if (!done) {
        (void)unlink_at(dir_fd, temporary, 0);
        return done;
    }
    return sync ? sync_fd(dir_fd, name) : Result<void>{};
}

}  // namespace checkpointd::images
