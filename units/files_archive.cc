// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/files_archive.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <map>
#include <memory>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>
#include <utility>

#include "core/base/io.h"
#include "units/tar.h"

namespace checkpointd {
namespace {

constexpr size_t kCopyBlock = 1u << 16;
constexpr mode_t kModeBits = 07777;
constexpr size_t kMaxAttribute = 1u << 16;  // XATTR_SIZE_MAX and XATTR_LIST_MAX
constexpr size_t kMaxExtents = 10000;

// Paths of the unit mean what they mean in its own root; a link of its making must lead nowhere else.
Result<ScopedFd> open_in(int root, const std::string& path, uint64_t flags, uint64_t resolve,
                         unsigned mode = 0) {
    open_how how = {};
    how.flags = flags | O_CLOEXEC;
    how.mode = mode;
    how.resolve = resolve;
    ScopedFd fd(static_cast<int>(syscall(SYS_openat2, root, path.c_str(), &how, sizeof(how))));
    if (!fd)
        return fail_errno(path, "cannot open");
    return fd;
}

Result<ScopedFd> open_root(pid_t pid) {
    return open_at(AT_FDCWD, fmt::format("/proc/{}/root", pid), O_PATH | O_DIRECTORY);
}

// --- attributes ---

// By path, because a FIFO that somebody waits to open must not be opened. `path` may end in a link, which
// is not followed.
Result<std::map<std::string, std::string>> read_attributes(const std::string& path,
                                                           const std::string& object) {
    std::map<std::string, std::string> out;
    std::string names(kMaxAttribute, '\0');
    ssize_t size = llistxattr(path.c_str(), names.data(), names.size());
    if (size < 0)
        return errno == ENOTSUP ? Result<std::map<std::string, std::string>>(out)
                                : fail_errno(object, "cannot list its attributes");
    names.resize(static_cast<size_t>(size));
    for (std::string_view rest = names; !rest.empty();) {
        const std::string name(rest.substr(0, rest.find('\0')));
        rest.remove_prefix(name.size() + 1);
        std::string value(kMaxAttribute, '\0');
        size = lgetxattr(path.c_str(), name.c_str(), value.data(), value.size());
        if (size < 0)
            return fail_errno(object, fmt::format("cannot read its attribute {}", name));
        value.resize(static_cast<size_t>(size));
        out.emplace(name, std::move(value));
    }
    return out;
}

Result<void> set_attributes(int fd, const TarEntry& entry) {
    for (const auto& [name, value] : entry.attributes) {
        if (fsetxattr(fd, name.c_str(), value.data(), value.size(), 0) == 0)
            continue;
        // A security module that this host does not have judges nothing either.
        if (errno != ENOTSUP || !name.starts_with("security."))
            return fail_errno(entry.path, fmt::format("cannot set its attribute {}", name));
    }
    return {};
}

// --- saving ---

// What of a file is no hole; empty for one without holes, or with so many that a map of them would be too
// large.
Result<std::vector<TarExtent>> find_extents(int fd, uint64_t size, const std::string& path) {
    std::vector<TarExtent> out;
    for (off_t at = 0; at < static_cast<off_t>(size) && out.size() <= kMaxExtents;) {
        off_t begin = lseek(fd, at, SEEK_DATA);
        if (begin < 0 && errno == ENXIO)
            break;
        off_t end = begin < 0 ? -1 : lseek(fd, begin, SEEK_HOLE);
        if (end < 0)
            return fail_errno(path, "cannot look for holes");
        end = std::min(end, static_cast<off_t>(size));
        out.push_back({static_cast<uint64_t>(begin), static_cast<uint64_t>(end - begin)});
        at = end;
    }
    bool is_dense = out.size() > kMaxExtents || (out.size() == 1 && out[0].length == size);
    return is_dense ? std::vector<TarExtent>() : out;
}

class Saver {
  public:
    explicit Saver(int out) : out_(out) {}

    Result<void> save_directory(int dir, const std::string& path) {
        struct stat status;
        if (fstat(dir, &status) != 0)
            return fail_errno(path, "cannot examine");
        TarEntry entry = describe(path, status, TarType::kDirectory);
        CKPT_ASSIGN(entry.attributes, read_attributes(fmt::format("/proc/self/fd/{}/.", dir), path));
        CKPT_TRY(write_header(entry));
        std::unique_ptr<DIR, int (*)(DIR*)> list(fdopendir(dup(dir)), closedir);
        if (!list)
            return fail_errno(path, "cannot list");
        while (const dirent* child = readdir(list.get()))
            if (std::string name = child->d_name; name != "." && name != "..")
                CKPT_TRY(save_entry(dir, name, path + "/" + name));
        return {};
    }

    Result<void> finish() {
        std::string end = tar_end();
        return write_all(out_, end.data(), end.size(), "unit files");
    }

  private:
    static TarEntry describe(const std::string& path, const struct stat& status, TarType type) {
        TarEntry entry;
        entry.path = path;
        entry.type = type;
        entry.mode = status.st_mode & kModeBits;
        entry.uid = status.st_uid;
        entry.gid = status.st_gid;
        entry.mtime = status.st_mtim.tv_sec;
        entry.mtime_nsec = static_cast<uint32_t>(status.st_mtim.tv_nsec);
        return entry;
    }

    Result<void> write_header(const TarEntry& entry) {
        std::string header = tar_header(entry);
        return write_all(out_, header.data(), header.size(), entry.path);
    }

    Result<void> save_entry(int dir, const std::string& name, const std::string& path) {
        struct stat status;
        if (fstatat(dir, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0)
            return errno == ENOENT ? Result<void>() : fail_errno(path, "cannot examine");
        TarEntry entry = describe(path, status, TarType::kFile);
        if (S_ISDIR(status.st_mode)) {
            CKPT_ASSIGN(ScopedFd child, open_at(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
            return save_directory(child.get(), path);
        }
        if (S_ISSOCK(status.st_mode))
            return {};
        if (status.st_nlink > 1 && !is_first_name(status, path, entry))
            return write_header(entry);
        CKPT_ASSIGN(entry.attributes,
                    read_attributes(fmt::format("/proc/self/fd/{}/{}", dir, name), path));
        switch (status.st_mode & S_IFMT) {
            case S_IFREG: return save_file(dir, name, std::move(entry));
            case S_IFLNK: {
                CKPT_ASSIGN(entry.link, read_link(dir, name));
                entry.type = TarType::kLink;
                return write_header(entry);
            }
            case S_IFIFO: entry.type = TarType::kFifo; return write_header(entry);
        }
        return fail(ErrorKind::kUnsupported, path, "a device node cannot be saved");
    }

    // The other names of a file are links to the first one that was saved.
    bool is_first_name(const struct stat& status, const std::string& path, TarEntry& entry) {
        auto [known, first] = names_.emplace(std::pair(status.st_dev, status.st_ino), path);
        if (!first) {
            entry.type = TarType::kHardLink;
            entry.link = known->second;
        }
        return first;
    }

    Result<void> save_file(int dir, const std::string& name, TarEntry entry) {
        CKPT_ASSIGN(ScopedFd file, open_at(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK));
        struct stat status;
        if (fstat(file.get(), &status) != 0)
            return fail_errno(entry.path, "cannot examine");
        entry.size = static_cast<uint64_t>(status.st_size);
        std::vector<TarExtent> parts = {{0, entry.size}};
        // st_blocks says cheaply that there may be holes.
        if (status.st_blocks * 512 < status.st_size) {
            CKPT_ASSIGN(entry.extents, find_extents(file.get(), entry.size, entry.path));
            if (!entry.extents.empty() || status.st_blocks == 0)
                parts = make_sparse(entry);
        }
        CKPT_TRY(write_header(entry));
        for (const TarExtent& part : parts)
            CKPT_TRY(copy_part(file.get(), part, entry.path));
        std::string padding(tar_padding(entry.size), '\0');
        return write_all(out_, padding.data(), padding.size(), entry.path);
    }

    static std::vector<TarExtent> make_sparse(TarEntry& entry) {
        entry.sparse_size = std::exchange(entry.size, 0);
        for (const TarExtent& extent : entry.extents)
            entry.size += extent.length;
        return entry.extents;
    }

    Result<void> copy_part(int file, TarExtent part, const std::string& path) {
        std::string block(kCopyBlock, '\0');
        while (part.length > 0) {
            ssize_t n = pread(file, block.data(), std::min<uint64_t>(part.length, block.size()),
                              static_cast<off_t>(part.offset));
            if (n < 0)
                return fail_errno(path, "cannot read");
            if (n == 0)
                return fail(ErrorKind::kConflict, path, "shrank while it was saved");
            CKPT_TRY(write_all(out_, block.data(), static_cast<size_t>(n), path));
            part.offset += static_cast<uint64_t>(n);
            part.length -= static_cast<uint64_t>(n);
        }
        return {};
    }

    int out_;
    std::map<std::pair<dev_t, ino_t>, std::string> names_;
};

// --- putting back ---

constexpr uint64_t kStayInside = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
// Below the unit's directory no link is followed at all: its user could swap one in meanwhile.
constexpr uint64_t kNoLinks = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS;

struct Target {
    std::string path;
    ScopedFd dir;
};

class Restorer {
  public:
    Restorer(int in, std::vector<Target> targets) : in_(in), targets_(std::move(targets)) {}

    Result<void> run() {
        for (;;) {
            CKPT_ASSIGN(auto entry, tar_next(in_));
            if (!entry)
                return {};
            CKPT_TRY(put(*entry));
        }
    }

  private:
    Result<void> put(const TarEntry& entry) {
        for (const Target& target : targets_) {
            if (entry.path == target.path)
                return dress(target.dir.get(), entry);
            if (entry.path.starts_with(target.path + "/"))
                return put_below(target, entry, entry.path.substr(target.path.size() + 1));
        }
        return fail(ErrorKind::kBadImage, entry.path, "lies in none of the unit's directories");
    }

    Result<void> put_below(const Target& target, const TarEntry& entry, const std::string& relative) {
        size_t slash = relative.rfind('/');
        std::string parent = slash == std::string::npos ? "." : relative.substr(0, slash);
        std::string name = relative.substr(slash == std::string::npos ? 0 : slash + 1);
        if (name.empty() || name == "." || name == "..")
            return fail(ErrorKind::kBadImage, entry.path, "is no file name");
        CKPT_ASSIGN(ScopedFd dir, open_in(target.dir.get(), parent, O_RDONLY | O_DIRECTORY, kNoLinks));
        switch (entry.type) {
            case TarType::kDirectory: return put_directory(dir.get(), name, entry);
            case TarType::kFile: return put_file(dir.get(), name, entry);
            case TarType::kHardLink: return put_hard_link(dir.get(), name, entry);
            case TarType::kFifo:
                if (mkfifoat(dir.get(), name.c_str(), 0600) != 0 && errno != EEXIST)
                    return fail_errno(entry.path, "cannot make the FIFO");
                return dress_by_name(dir.get(), name, entry);
            case TarType::kLink:
                if (symlinkat(entry.link.c_str(), dir.get(), name.c_str()) != 0 && errno != EEXIST)
                    return fail_errno(entry.path, "cannot make the link");
                if (fchownat(dir.get(), name.c_str(), entry.uid, entry.gid, AT_SYMLINK_NOFOLLOW) != 0)
                    return fail_errno(entry.path, "cannot give it to its owner");
                return {};
        }
        return fail(ErrorKind::kBadImage, entry.path, "has an unknown type");
    }

    Result<void> put_directory(int dir, const std::string& name, const TarEntry& entry) {
        if (mkdirat(dir, name.c_str(), 0700) != 0 && errno != EEXIST)
            return fail_errno(entry.path, "cannot make the directory");
        return dress_by_name(dir, name, entry);
    }

    Result<void> put_file(int dir, const std::string& name, const TarEntry& entry) {
        if (unlinkat(dir, name.c_str(), 0) != 0 && errno != ENOENT)
            return fail_errno(entry.path, "cannot replace");
        CKPT_ASSIGN(ScopedFd file, open_in(dir, name, O_WRONLY | O_CREAT | O_EXCL, kNoLinks, 0600));
        CKPT_TRY(tar_copy(in_, entry, file.get()));
        return dress(file.get(), entry);
    }

    // To a member that is there already, hence below one of the unit's directories.
    Result<void> put_hard_link(int dir, const std::string& name, const TarEntry& entry) {
        for (const Target& target : targets_) {
            if (!entry.link.starts_with(target.path + "/"))
                continue;
            CKPT_ASSIGN(ScopedFd first, open_in(target.dir.get(), entry.link.substr(target.path.size() + 1),
                                                O_PATH | O_NOFOLLOW, kNoLinks));
            if (unlinkat(dir, name.c_str(), 0) != 0 && errno != ENOENT)
                return fail_errno(entry.path, "cannot replace");
            if (linkat(first.get(), "", dir, name.c_str(), AT_EMPTY_PATH) != 0)
                return fail_errno(entry.path, fmt::format("cannot link it to {}", entry.link));
            return {};
        }
        return fail(ErrorKind::kBadImage, entry.link, "lies in none of the unit's directories");
    }

    Result<void> dress_by_name(int dir, const std::string& name, const TarEntry& entry) {
        CKPT_ASSIGN(ScopedFd fd, open_in(dir, name, O_RDONLY | O_NONBLOCK | O_NOFOLLOW, kNoLinks));
        return dress(fd.get(), entry);
    }

    // Owner first: a change of owner clears the set-id bits and capabilities (chown(2)).
    Result<void> dress(int fd, const TarEntry& entry) {
        if (fchown(fd, entry.uid, entry.gid) != 0 || fchmod(fd, entry.mode) != 0)
            return fail_errno(entry.path, "cannot set owner or mode");
        CKPT_TRY(set_attributes(fd, entry));
        timespec time = {entry.mtime, static_cast<long>(entry.mtime_nsec)};
        timespec times[2] = {time, time};
        if (futimens(fd, times) != 0)
            return fail_errno(entry.path, "cannot set its time");
        return {};
    }

    int in_;
    std::vector<Target> targets_;
};

Result<void> write_pid_file(const UnitFacts& facts) {
    if (facts.pid_file.empty() || facts.pid_file_content.empty())
        return {};
    return write_file(AT_FDCWD, facts.pid_file, facts.pid_file_content, 0644);
}

}  // namespace

Result<void> save_unit_files(const UnitFacts& facts, pid_t pid, int out_fd) {
    CKPT_ASSIGN(ScopedFd root, open_root(pid));
    Saver saver(out_fd);
    for (const UnitDirectory& directory : facts.directories) {
        auto dir = open_in(root.get(), directory.path, O_RDONLY | O_DIRECTORY, kStayInside);
        if (!dir && dir.error().errno_code == ENOENT)
            continue;  // the program may remove its own
        if (!dir)
            return tl::unexpected(std::move(dir).error());
        CKPT_TRY(saver.save_directory(dir->get(), directory.path));
    }
    return saver.finish();
}

bool has_unit_files(const UnitFacts& facts) {
    return !facts.directories.empty() || !facts.pid_file.empty();
}

Result<void> restore_unit_files(const UnitFacts& facts, pid_t pid, int in_fd) {
    CKPT_ASSIGN(ScopedFd root, open_root(pid));
    std::vector<Target> targets;
    for (const UnitDirectory& directory : facts.directories) {
        CKPT_ASSIGN(ScopedFd dir, open_in(root.get(), directory.path, O_RDONLY | O_DIRECTORY,
                                          kStayInside));
        targets.push_back({directory.path, std::move(dir)});
    }
    CKPT_TRY(Restorer(in_fd, std::move(targets)).run());
    // Only where the archive did not bring it back: in the unit's directory it has its owner and mode.
    bool is_there = access(facts.pid_file.c_str(), F_OK) == 0;
    return is_there ? Result<void>() : write_pid_file(facts);
}

Result<void> correct_pid_file(const UnitFacts& facts, pid_t main_pid) {
    if (facts.pid_file.empty() || access(facts.pid_file.c_str(), F_OK) != 0)
        return {};
    CKPT_ASSIGN(ScopedFd root, open_at(AT_FDCWD, "/", O_PATH | O_DIRECTORY));
    CKPT_ASSIGN(ScopedFd file,
                open_in(root.get(), facts.pid_file.substr(1), O_RDWR | O_NOFOLLOW, kNoLinks));
    struct stat about {};
    if (fstat(file.get(), &about) != 0 || !S_ISREG(about.st_mode) || about.st_nlink != 1)
        return fail(ErrorKind::kConflict, facts.pid_file, "is no plain file");
    const std::string number = fmt::format("{}\n", main_pid);
    CKPT_ASSIGN(const std::string said, read_fd(file.get(), facts.pid_file, 4096));
    if ((said + "\n").starts_with(number))
        return {};
    if (lseek(file.get(), 0, SEEK_SET) != 0 || ftruncate(file.get(), 0) != 0)
        return fail_errno(facts.pid_file, "cannot write the PID file");
    return write_all(file.get(), number.data(), number.size(), facts.pid_file);
}

}  // namespace checkpointd
