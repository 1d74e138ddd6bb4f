// SPDX-License-Identifier: LGPL-2.1-or-later
#include <algorithm>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <unordered_map>

#include <fmt/format.h>

#include "core/base/io.h"
#include "core/kernel/proc_task.h"
#include "core/resources/file_locks.h"
#include "core/resources/files.h"
#include "core/resources/kinds.h"
#include "core/resources/memfd.h"
#include "core/resources/open_file.h"
#include "core/resources/plugin_file.h"
#include "core/resources/regular.h"

namespace checkpointd {

namespace {

// Descriptors that may share one struct file have all of this in common.
struct Likeness {
    dev_t dev;
    ino_t ino;
    uint64_t pos;
    unsigned flags;
    bool operator==(const Likeness&) const = default;
};

struct LikenessHash {
    size_t operator()(const Likeness& a) const {
        uint64_t h = a.ino * 0x9e3779b97f4a7c15u;
        h = (h ^ a.dev) * 0x9e3779b97f4a7c15u;
        h = (h ^ a.pos) * 0x9e3779b97f4a7c15u;
        return static_cast<size_t>((h ^ a.flags) * 0x9e3779b97f4a7c15u >> 7);
    }
};

// The open directories of one task through which its descriptors are asked for.
struct TaskDirs {
    ScopedFd links;  // /proc/PID/fd
    ScopedFd infos;  // /proc/PID/fdinfo
};

struct MountNamespace {
    ScopedFd root;
    std::string prefix;  // path of `root` within the namespace, "" for its real root
};

// A descriptor may belong to any thread of the process as long as they share the table; pidfd_getfd
// takes it from the leader.
Result<ScopedFd> take_copy(const FileTask& task, int fd) {
    long copy = syscall(SYS_pidfd_getfd, task.pidfd, fd, 0);
    if (copy < 0)
        return fail_errno(fmt::format("pid {} fd {}", task.pid, fd), "pidfd_getfd");
    return ScopedFd(static_cast<int>(copy));
}

Result<std::string> read_fdinfo(int dir_fd, int number, const std::string& object) {
    ScopedFd file(openat(dir_fd, fmt::format_int(number).c_str(), O_RDONLY | O_CLOEXEC));
    if (!file)
        return fail_errno(object, "opening fdinfo");
    std::string text(1024, '\0');
    size_t used = 0;
    while (true) {
        ssize_t got = read(file.get(), text.data() + used, text.size() - used);
        if (got < 0)
            return fail_errno(object, "reading fdinfo");
        used += static_cast<size_t>(got);
        // seq_file fills what it has; less than the room left, after 1 KiB, is not yet the end.
        if (got == 0 || (used < 512 && static_cast<size_t>(got) == used))
            break;
        if (used == text.size())
            text.resize(text.size() * 2);
    }
    text.resize(used);
    return text;
}

// Mount points of a filesystem in the task's mount namespace. proc(5): fields 3 (major:minor) and 5.
std::vector<std::string> mount_points(pid_t pid, uint32_t kernel_dev) {
    std::vector<std::string> points;
    auto text = read_file(AT_FDCWD, fmt::format("/proc/{}/mountinfo", pid));
    if (!text)
        return points;
    const std::string dev = fmt::format("{}:{}", kernel_dev >> 20, kernel_dev & 0xfffff);
    for_each_line(*text, [&](std::string_view line) {
        std::string_view field[5];
        for (auto& part : field) {
            size_t end = line.find(' ');
            part = line.substr(0, end);
            line.remove_prefix(end == std::string_view::npos ? line.size() : end + 1);
        }
        if (field[2] == dev)
            points.emplace_back(field[4]);
    });
    return points;
}

Result<uint32_t> read_umask(pid_t pid) {
    CKPT_ASSIGN(std::string status, read_file(AT_FDCWD, fmt::format("/proc/{}/status", pid)));
    auto text = fdinfo_value(status, "Umask");
    auto mask = text ? parse_number(*text, 8) : std::nullopt;
    if (!mask)
        return fail(ErrorKind::kInternal, fmt::format("pid {}", pid), "status tells no umask");
    return static_cast<uint32_t>(*mask);
}

}  // namespace

class FileCollector::Impl final : public FileDumpContext, public FileTables {
  public:
    explicit Impl(CollectOptions options)
        : options_(std::move(options)), tables_(KCMP_FILES), fs_(KCMP_FS) {}

    void add_task(const FileTask& task) { tasks_[task.pid] = task; }
    Result<void> collect(pid_t pid);
    Result<void> finish();
    Result<uint32_t> id_of_mapping(const MappedFile& mapping);
    Result<uint32_t> id_of_exe(pid_t pid);

    // FileDumpContext
    void blocker(Error error) override { blockers_.push_back(std::move(error)); }
    uint32_t new_id() override { return next_id_++; }
    FileImages& images() override { return images_; }
    bool is_external(const std::string& key) const override {
        return options_.externals.contains(key);
    }
    const CollectOptions& options() const override { return options_; }
    const FileTask* task(pid_t pid) const override {
        auto found = tasks_.find(pid);
        return found == tasks_.end() ? nullptr : &found->second;
    }
    NamespaceRoot namespace_root(pid_t pid) override;
    Result<uint32_t> add_file(const OpenFile& file, const FileKind& kind) override;
    void when_collected(std::function<Result<void>(FileTables&)> finish) override {
        finishers_.push_back(std::move(finish));
    }
    Result<void> want_memory(uint32_t shmid, uint64_t size, int copy) override;
    void note_lock(const OpenFile& file, uint32_t file_id,
                   const images::file_lock_entry& lock) override;
    std::vector<int> mounts_of(pid_t pid, uint32_t kernel_dev) override;

    // FileTables
    const std::vector<Descriptor>& of(pid_t pid) const override {
        static const std::vector<Descriptor> none;
        auto found = descriptors_.find(pid);
        return found == descriptors_.end() ? none : found->second;
    }
    std::vector<pid_t> pids() const override { return collected_; }

    SharedIds& tables() { return tables_; }
    SharedIds& fs() { return fs_; }
    std::vector<Error> blockers_;
    std::vector<WantedMemory> wanted_;
    FileImages images_;

  private:
    struct Seen {  // a struct file known already
        uint32_t id;
        images::fd_types type;
    };
    Result<void> collect_table(const FileTask& task, uint32_t files_id);
    Result<OpenFile> look_at(const FileTask& task, const TaskDirs& dirs, int fd, int copy,
                             uint32_t& descriptor_flags);
    Result<void> collect_one(const FileTask& task, const TaskDirs& dirs, int fd, uint32_t files_id);
    Result<Seen> identify(const OpenFile& file);
    Result<Seen> dump_new(const OpenFile& file, uint32_t id);
    Result<std::optional<Seen>> dump_by_plugin(const OpenFile& file, uint32_t id);
    bool is_called_external(const OpenFile& file) const;
    void translate_owner(OpenFile& file);
    uint32_t id_of_path(const std::string& path);
    Result<uint32_t> id_of_proc_link(pid_t pid, const std::string& name, unsigned flags);
    Result<OpenFile> look_at_link(pid_t pid, const std::string& name, unsigned flags, ScopedFd& hold);
    MountNamespace open_namespace(pid_t pid, const std::string& ns);

    CollectOptions options_;
    std::map<pid_t, FileTask> tasks_;
    std::vector<pid_t> collected_;
    std::map<pid_t, std::vector<Descriptor>> descriptors_;
    SharedIds tables_;
    SharedIds fs_;
    uint32_t next_id_ = 1;
    std::unordered_map<Likeness, KernelOrder, LikenessHash> candidates_;
    std::unordered_map<uint32_t, images::fd_types> types_;
    std::unordered_map<std::string, uint32_t> special_;  // mappings, cwd, root, exe
    std::map<std::string, MountNamespace> namespaces_;
    std::map<pid_t, std::string> namespace_of_;
    std::vector<std::function<Result<void>(FileTables&)>> finishers_;
    std::set<std::string> locks_;
    std::map<std::string, std::vector<ScopedFd>> mounts_;
};

Result<void> FileCollector::Impl::collect(pid_t pid) {
    const FileTask* known = task(pid);
    if (known == nullptr)
        return fail(ErrorKind::kInternal, fmt::format("pid {}", pid), "not announced by add_task()");
    const FileTask task = *known;
    collected_.push_back(pid);
    bool is_new = false;
    CKPT_ASSIGN(uint32_t files_id, tables_.of(pid, &is_new));
    if (is_new)
        CKPT_TRY(collect_table(task, files_id));
    images::fs_entry entry;
    CKPT_ASSIGN(uint32_t cwd, id_of_proc_link(pid, "cwd", 0));
    CKPT_ASSIGN(uint32_t root, id_of_proc_link(pid, "root", 0));
    CKPT_ASSIGN(uint32_t mask, read_umask(pid));
    entry.set_cwd_id(cwd);
    entry.set_root_id(root);
    entry.set_umask(mask);
    images_.fs[task.ns_pid] = entry;
    return {};
}

Result<void> FileCollector::Impl::collect_table(const FileTask& task, uint32_t files_id) {
    images_.tables[files_id];  // an empty table has its image, too
    const std::string proc = fmt::format("/proc/{}", task.pid);
    TaskDirs dirs;
    CKPT_ASSIGN(dirs.links, open_at(AT_FDCWD, proc + "/fd", O_RDONLY | O_DIRECTORY));
    CKPT_ASSIGN(dirs.infos, open_at(AT_FDCWD, proc + "/fdinfo", O_RDONLY | O_DIRECTORY));
    CKPT_ASSIGN(std::vector<int> numbers, read_descriptor_list(task.pid));
    for (int fd : numbers)
        CKPT_TRY(collect_one(task, dirs, fd, files_id));
    return {};
}

Result<OpenFile> FileCollector::Impl::look_at(const FileTask& task, const TaskDirs& dirs, int fd,
                                              int copy, uint32_t& descriptor_flags) {
    OpenFile file;
    file.pid = task.pid;
    file.fd = fd;
    file.copy = copy;
    CKPT_ASSIGN(file.link, read_link(dirs.links.get(), fmt::format_int(fd).str()));
    file.object = describe(task.pid, fd, file.link);
    if (fstat(copy, &file.st) != 0)
        return fail_errno(file.object, "fstat");
    CKPT_ASSIGN(file.fdinfo, read_fdinfo(dirs.infos.get(), fd, file.object));
    CKPT_ASSIGN(descriptor_flags, parse_common_fdinfo(file));
    return file;
}

Result<void> FileCollector::Impl::collect_one(const FileTask& task, const TaskDirs& dirs, int fd,
                                              uint32_t files_id) {
    CKPT_ASSIGN(ScopedFd copy, take_copy(task, fd));
    uint32_t descriptor_flags = 0;
    CKPT_ASSIGN(OpenFile file, look_at(task, dirs, fd, copy.get(), descriptor_flags));
    CKPT_ASSIGN(Seen seen, identify(file));
    if (seen.id == 0)
        return {};  // a blocker was noted
    collect_locks(file, seen.id, *this);
    images::fdinfo_entry entry;
    entry.set_id(seen.id);
    entry.set_flags(descriptor_flags);
    entry.set_type(seen.type);
    entry.set_fd(static_cast<uint32_t>(fd));
    images_.tables[files_id].push_back(std::move(entry));
    descriptors_[task.pid].push_back({static_cast<uint32_t>(fd), seen.id, file.st.st_dev,
                                      file.st.st_ino});
    return {};
}

Result<FileCollector::Impl::Seen> FileCollector::Impl::identify(const OpenFile& file) {
    Likeness key{file.st.st_dev, file.st.st_ino, file.pos, file.flags};
    KernelOrder& order = candidates_.try_emplace(key, KCMP_FILE).first->second;
    bool is_new = false;
    CKPT_ASSIGN(uint32_t id, order.id_of(file.pid, static_cast<uint64_t>(file.fd), next_id_, &is_new));
    if (!is_new) {
        auto type = types_.find(id);
        return type == types_.end() ? Seen{0, images::UND} : Seen{id, type->second};
    }
    ++next_id_;
    return dump_new(file, id);
}

// By one of the keys that kinds make of what they dump.
bool FileCollector::Impl::is_called_external(const OpenFile& file) const {
    return is_external(file.link) || is_external(external_key(file));
}

Result<std::optional<FileCollector::Impl::Seen>> FileCollector::Impl::dump_by_plugin(const OpenFile& file,
                                                                                     uint32_t id) {
    if (!options_.ask_plugins || is_called_external(file))
        return std::nullopt;
    auto plugin = options_.ask_plugins(file, id);
    if (!plugin && plugin.error().kind == ErrorKind::kUnsupported) {
        blockers_.push_back(std::move(plugin).error());
        return Seen{0, images::UND};
    }
    CKPT_TRY(plugin);
    if (!*plugin)
        return std::nullopt;
    OpenFile owned = file;
    CKPT_TRY(read_owner(owned));
    translate_owner(owned);
    types_[id] = images::EXT;
    images_.files.push_back(plugin_file_entry(owned, id, **plugin, task(file.pid)->ns_pid));
    return Seen{id, images::EXT};
}

Result<FileCollector::Impl::Seen> FileCollector::Impl::dump_new(const OpenFile& file, uint32_t id) {
    CKPT_ASSIGN(const std::optional<Seen> of_plugin, dump_by_plugin(file, id));
    if (of_plugin)
        return *of_plugin;
    for (const FileKind* kind : file_kinds()) {
        if (!kind->recognise(file))
            continue;
        OpenFile owned = file;
        CKPT_TRY(read_owner(owned));
        translate_owner(owned);
        images::file_entry entry;
        entry.set_type(kind->type);
        entry.set_id(id);
        CKPT_TRY(kind->dump(owned, *this, entry));
        types_[id] = kind->type;
        images_.files.push_back(std::move(entry));
        return Seen{id, kind->type};
    }
    blockers_.push_back(unsupported_file(file));
    return Seen{0, images::UND};
}

void FileCollector::Impl::translate_owner(OpenFile& file) {
    if (file.owner.pid == 0)
        return;
    if (const FileTask* owner = task(static_cast<pid_t>(file.owner.pid))) {
        file.owner.pid = static_cast<uint32_t>(owner->ns_pid);
        return;
    }
    blocker(Error{ErrorKind::kUnsupported, file.object,
                  fmt::format("its signals go to pid {}, which is not checkpointed", file.owner.pid),
                  "include that process, or end the ownership (F_SETOWN)", 0, {}});
}

Result<uint32_t> FileCollector::Impl::add_file(const OpenFile& file, const FileKind& kind) {
    images::file_entry entry;
    uint32_t id = new_id();
    entry.set_type(kind.type);
    entry.set_id(id);
    CKPT_TRY(kind.dump(file, *this, entry));
    types_[id] = kind.type;
    images_.files.push_back(std::move(entry));
    return id;
}

Result<void> FileCollector::Impl::want_memory(uint32_t shmid, uint64_t size, int copy) {
    ScopedFd own(fcntl(copy, F_DUPFD_CLOEXEC, 0));
    if (!own)
        return fail_errno("memfd", "F_DUPFD_CLOEXEC");
    wanted_.push_back(WantedMemory{shmid, size, std::move(own)});
    return {};
}

void FileCollector::Impl::note_lock(const OpenFile& file, uint32_t file_id,
                                    const images::file_lock_entry& lock) {
    // file_lock_entry.flag 1: POSIX locks belong to the process and the inode, others to the open file.
    const std::string owner =
        lock.flag() == 1 ? fmt::format("pid {} {}:{}", file.pid, file.st.st_dev, file.st.st_ino)
                         : fmt::format("file {}", file_id);
    if (locks_.insert(fmt::format("{} {} {} {} {}", owner, lock.flag(), lock.type(), lock.start(),
                                  lock.len())).second)
        images_.locks.push_back(lock);
}

std::vector<int> FileCollector::Impl::mounts_of(pid_t pid, uint32_t kernel_dev) {
    const NamespaceRoot root = namespace_root(pid);
    auto [found, is_new] =
        mounts_.try_emplace(fmt::format("{}:{}", namespace_of_[pid], kernel_dev));
    if (is_new) {
        for (const std::string& path : mount_points(pid, kernel_dev)) {
            if (!path.starts_with(root.prefix))
                continue;
            std::string below = path.substr(root.prefix.size());
            below.erase(0, below.find_first_not_of('/'));
            ScopedFd dir(openat(root.fd, below.empty() ? "." : below.c_str(), O_RDONLY | O_CLOEXEC));
            if (dir)
                found->second.push_back(std::move(dir));
        }
    }
    std::vector<int> dirs;
    for (const ScopedFd& dir : found->second)
        dirs.push_back(dir.get());
    return dirs;
}

Result<void> FileCollector::Impl::finish() {
    for (auto& finisher : finishers_)
        CKPT_TRY(finisher(*this));
    finishers_.clear();
    return {};
}

// The root of a mount namespace as something to look paths up in. A chrooted task shows only a part of
// it: then another task of the same namespace is asked, and last the part itself with its prefix.
MountNamespace FileCollector::Impl::open_namespace(pid_t pid, const std::string& ns) {
    std::vector<std::string> choices;
    auto own = read_link(AT_FDCWD, "/proc/self/ns/mnt");
    if (own && *own == ns)
        choices.push_back("/");
    choices.push_back(fmt::format("/proc/{}/root", pid));
    for (const auto& [other, unused] : tasks_)
        if (auto its = read_link(AT_FDCWD, fmt::format("/proc/{}/ns/mnt", other)); its && *its == ns)
            choices.push_back(fmt::format("/proc/{}/root", other));
    MountNamespace partial;
    for (const std::string& choice : choices) {
        auto root = open_at(AT_FDCWD, choice, O_PATH | O_DIRECTORY);
        auto text = choice == "/" ? Result<std::string>("/") : read_link(AT_FDCWD, choice);
        if (!root || !text)
            continue;
        if (*text == "/")
            return {std::move(*root), ""};
        if (!partial.root)
            partial = {std::move(*root), std::move(*text)};
    }
    return partial;
}

NamespaceRoot FileCollector::Impl::namespace_root(pid_t pid) {
    auto known = namespace_of_.find(pid);
    if (known == namespace_of_.end()) {
        auto ns = read_link(AT_FDCWD, fmt::format("/proc/{}/ns/mnt", pid));
        known = namespace_of_.emplace(pid, ns ? *ns : std::string()).first;
    }
    auto [found, is_new] = namespaces_.try_emplace(known->second);
    if (is_new)
        found->second = open_namespace(pid, known->second);
    return {found->second.root.get(), found->second.prefix};
}

Result<OpenFile> FileCollector::Impl::look_at_link(pid_t pid, const std::string& name, unsigned flags,
                                                   ScopedFd& hold) {
    OpenFile file;
    file.pid = pid;
    const std::string path = fmt::format("/proc/{}/{}", pid, name);
    CKPT_ASSIGN(file.link, read_link(AT_FDCWD, path));
    file.object = fmt::format("pid {} {} ({})", pid, name, file.link);
    hold = ScopedFd(open(path.c_str(), O_PATH | O_CLOEXEC));
    if (!hold)
        return fail_errno(file.object, "opening");
    struct statx facts {};
    if (statx(hold.get(), "", AT_EMPTY_PATH, STATX_MNT_ID, &facts) == 0)
        file.mnt_id = static_cast<int>(facts.stx_mnt_id);
    if (fstat(hold.get(), &file.st) != 0)
        return fail_errno(file.object, "fstat");
    file.copy = hold.get();
    file.flags = flags;
    return file;
}

Result<uint32_t> FileCollector::Impl::id_of_proc_link(pid_t pid, const std::string& name,
                                                      unsigned flags) {
    ScopedFd hold;
    CKPT_ASSIGN(OpenFile file, look_at_link(pid, name, flags, hold));
    const std::string key =
        fmt::format("{}:{}:{}:{}", file.st.st_dev, file.st.st_ino, flags, file.link);
    auto known = special_.find(key);
    if (known != special_.end())
        return known->second;
    const FileKind& kind = is_memfd(file) ? kMemfdKind : kRegularKind;
    CKPT_ASSIGN(uint32_t id, add_file(file, kind));
    special_[key] = id;
    return id;
}

Result<uint32_t> FileCollector::Impl::id_of_mapping(const MappedFile& mapping) {
    if (mapping.by_plugin)
        return id_of_path(mapping.path);
    const unsigned flags = mapping.writable_shared ? O_RDWR : O_RDONLY;
    // The device number of maps and of stat differ on btrfs and overlayfs, so this is a key of its own.
    const std::string key = fmt::format("map:{}:{}:{}:{}", mapping.dev, mapping.inode, flags,
                                        mapping.path);
    auto known = special_.find(key);
    if (known != special_.end())
        return known->second;
    CKPT_ASSIGN(uint32_t id,
                id_of_proc_link(mapping.pid,
                                fmt::format("map_files/{:x}-{:x}", mapping.start, mapping.end), flags));
    special_[key] = id;
    return id;
}

uint32_t FileCollector::Impl::id_of_path(const std::string& path) {
    auto [known, is_new] = special_.try_emplace("path:" + path, next_id_);
    if (!is_new)
        return known->second;
    images::file_entry& entry = images_.files.emplace_back();
    entry.set_type(images::REG);
    entry.set_id(next_id_);
    images::reg_file_entry& reg = *entry.mutable_reg();
    reg.set_id(next_id_);
    reg.set_flags(O_RDWR);
    reg.set_pos(0);
    reg.set_name(path);
    put_owner(OpenFile{}, *reg.mutable_fown());
    return next_id_++;
}

Result<uint32_t> FileCollector::Impl::id_of_exe(pid_t pid) {
    return id_of_proc_link(pid, "exe", O_RDONLY);
}

FileCollector::FileCollector(CollectOptions options)
    : impl_(std::make_unique<Impl>(std::move(options))) {}
FileCollector::~FileCollector() = default;

void FileCollector::add_task(const FileTask& task) {
    impl_->add_task(task);
}
Result<void> FileCollector::collect(pid_t pid) {
    return impl_->collect(pid);
}
Result<void> FileCollector::finish() {
    return impl_->finish();
}
Result<uint32_t> FileCollector::id_of_mapping(const MappedFile& mapping) {
    return impl_->id_of_mapping(mapping);
}
Result<uint32_t> FileCollector::id_of_exe(pid_t pid) {
    return impl_->id_of_exe(pid);
}
Result<uint32_t> FileCollector::files_id(pid_t pid) {
    return impl_->tables().of(pid);
}
Result<uint32_t> FileCollector::fs_id(pid_t pid) {
    return impl_->fs().of(pid);
}
const std::vector<Error>& FileCollector::blockers() const {
    return impl_->blockers_;
}
const std::vector<WantedMemory>& FileCollector::wanted_memory() const {
    return impl_->wanted_;
}
const FileImages& FileCollector::images() const {
    return impl_->images_;
}
Result<void> FileCollector::write(int image_dir_fd) const {
    return write_file_images(impl_->images_, image_dir_fd);
}

}  // namespace checkpointd
