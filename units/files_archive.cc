// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/files_archive.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <memory>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/base/io.h"
#include "units/tar.h"

namespace checkpointd {
namespace {

constexpr size_t kCopyBlock = 1u << 16;
constexpr mode_t kModeBits = 07777;

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

// --- saving ---

class Saver {
  public:
    explicit Saver(int out) : out_(out) {}

    Result<void> save_directory(int dir, const std::string& path) {
        struct stat status;
        if (fstat(dir, &status) != 0)
            return fail_errno(path, "cannot examine");
        CKPT_TRY(write_header(path, status, TarType::kDirectory, ""));
        std::unique_ptr<DIR, int (*)(DIR*)> list(fdopendir(dup(dir)), closedir);
        if (!list)
            return fail_errno(path, "cannot list");
        while (const dirent* entry = readdir(list.get()))
            if (std::string name = entry->d_name; name != "." && name != "..")
                CKPT_TRY(save_entry(dir, name, path + "/" + name));
        return {};
    }

    Result<void> finish() {
        std::string end = tar_end();
        return write_all(out_, end.data(), end.size(), "unit files");
    }

  private:
    Result<void> write_header(const std::string& path, const struct stat& status, TarType type,
                              const std::string& link) {
        TarEntry entry;
        entry.path = path;
        entry.type = type;
        entry.link = link;
        entry.mode = status.st_mode & kModeBits;
        entry.uid = status.st_uid;
        entry.gid = status.st_gid;
        entry.mtime = status.st_mtim.tv_sec;
        entry.size = type == TarType::kFile ? static_cast<uint64_t>(status.st_size) : 0;
        std::string header = tar_header(entry);
        return write_all(out_, header.data(), header.size(), path);
    }

    Result<void> save_entry(int dir, const std::string& name, const std::string& path) {
        struct stat status;
        if (fstatat(dir, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0)
            return errno == ENOENT ? Result<void>() : fail_errno(path, "cannot examine");
        switch (status.st_mode & S_IFMT) {
            case S_IFDIR: {
                CKPT_ASSIGN(ScopedFd child, open_at(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
                return save_directory(child.get(), path);
            }
            case S_IFREG: return save_file(dir, name, path);
            case S_IFLNK: {
                CKPT_ASSIGN(std::string link, read_link(dir, name));
                return write_header(path, status, TarType::kLink, link);
            }
            case S_IFIFO: return write_header(path, status, TarType::kFifo, "");
            case S_IFSOCK: return {};
        }
        return fail(ErrorKind::kUnsupported, path, "a device node cannot be saved");
    }

    Result<void> save_file(int dir, const std::string& name, const std::string& path) {
        CKPT_ASSIGN(ScopedFd file, open_at(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK));
        struct stat status;
        if (fstat(file.get(), &status) != 0)
            return fail_errno(path, "cannot examine");
        CKPT_TRY(write_header(path, status, TarType::kFile, ""));
        std::string block(kCopyBlock, '\0');
        for (uint64_t left = static_cast<uint64_t>(status.st_size); left > 0;) {
            ssize_t n = read(file.get(), block.data(), std::min<uint64_t>(left, block.size()));
            if (n < 0)
                return fail_errno(path, "cannot read");
            if (n == 0)
                return fail(ErrorKind::kConflict, path, "shrank while it was saved");
            CKPT_TRY(write_all(out_, block.data(), static_cast<size_t>(n), path));
            left -= static_cast<uint64_t>(n);
        }
        std::string padding(tar_padding(static_cast<uint64_t>(status.st_size)), '\0');
        return write_all(out_, padding.data(), padding.size(), path);
    }

    int out_;
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

    Result<void> dress_by_name(int dir, const std::string& name, const TarEntry& entry) {
        CKPT_ASSIGN(ScopedFd fd, open_in(dir, name, O_RDONLY | O_NONBLOCK | O_NOFOLLOW, kNoLinks));
        return dress(fd.get(), entry);
    }

    // Owner first: a change of owner clears the set-id bits (chown(2)).
    Result<void> dress(int fd, const TarEntry& entry) {
        timespec times[2] = {{entry.mtime, 0}, {entry.mtime, 0}};
        if (fchown(fd, entry.uid, entry.gid) != 0 || fchmod(fd, entry.mode) != 0 ||
            futimens(fd, times) != 0)
            return fail_errno(entry.path, "cannot set owner, mode or time");
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

}  // namespace checkpointd
