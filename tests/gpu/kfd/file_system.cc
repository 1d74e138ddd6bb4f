// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/gpu/kfd/file_system.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <sstream>

namespace checkpointd::kfd_emulation {

namespace {

bool copy_memory(pid_t process, uint64_t address, void* data, size_t size, bool write) {
    const iovec local{data, size};
    const iovec remote{reinterpret_cast<void*>(address), size};
    const ssize_t copied = write ? process_vm_writev(process, &local, 1, &remote, 1, 0)
                                 : process_vm_readv(process, &local, 1, &remote, 1, 0);
    return copied == static_cast<ssize_t>(size);
}

bool has_ended(int pidfd) {
    pollfd one{pidfd, POLLIN, 0};
    return poll(&one, 1, 0) == 1;
}

std::optional<Fault::Kind> kind_of(const std::string& word) {
    static const std::map<std::string, Fault::Kind> kinds = {
        {"fail", Fault::Kind::kFail},
        {"fail-after", Fault::Kind::kFailAfter},
        {"delay", Fault::Kind::kDelay},
        {"hang", Fault::Kind::kHang}};
    const auto found = kinds.find(word);
    return found == kinds.end() ? std::nullopt : std::optional(found->second);
}

}  // namespace

Result<std::vector<Fault>> parse_faults(const std::string& text) {
    std::vector<Fault> faults;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        std::istringstream words(line);
        Fault fault;
        std::string kind;
        if (!(words >> fault.call))
            continue;
        words >> kind >> fault.value >> fault.nth;
        const auto known = kind_of(kind);
        if (!known)
            return fail(ErrorKind::kBadInput, line,
                        "is not CALL fail|fail-after|delay|hang [VALUE] [NTH]");
        fault.kind = *known;
        faults.push_back(fault);
    }
    return faults;
}

FileSystem::FileSystem(const Machine& machine, PageCache* pages)
    : gpus_(machine.gpus()), state_(machine.gpus(), state_options(pages)) {
    fixed_[kRoot] = {kRoot, "", true, 0, kRoot, {}};
    fixed_[kKfd] = {kKfd, "kfd", false, kDeviceSize, kRoot, {}};
    fixed_[kControl] = {kControl, "control", false, 0, kRoot, {}};
    for (const Gpu& gpu : gpus_)
        fixed_[kRender + gpu.render_minor] = {kRender + gpu.render_minor,
                                              fmt::format("renderD{}", gpu.render_minor),
                                              false,
                                              kDeviceSize,
                                              kRoot,
                                              {}};
    add_topology(machine);
}

FileSystem::~FileSystem() = default;

State::Options FileSystem::state_options(PageCache* pages) {
    State::Options options;
    options.mmap_type_shift = 60;  // an ordinary file has no offsets of 2^63 and more
    options.flush = [pages](uint32_t minor) { pages->flush(minor); };
    options.access_mapped = [pages](uint32_t minor, uint64_t offset, void* data, size_t size,
                                    bool write) {
        return pages->access(minor, offset, data, size, write);
    };
    options.read_memory = [](pid_t process, uint64_t address, void* data, size_t size) {
        return copy_memory(process, address, data, size, false);
    };
    options.write_memory = [](pid_t process, uint64_t address, const void* data, size_t size) {
        return copy_memory(process, address, const_cast<void*>(data), size, true);
    };
    return options;
}

// The files

void FileSystem::add_topology(const Machine& machine) {
    for (const auto& [path, text] : topology_files(machine)) {
        const std::string full = "topology/" + path;
        const auto slash = full.rfind('/');
        const uint64_t parent = folder_of(full.substr(0, slash));
        const uint64_t inode = kFolder + fixed_.size();
        fixed_[inode] = {inode, full.substr(slash + 1), false, text.size(), parent, text};
    }
}

uint64_t FileSystem::folder_of(const std::string& path) {
    if (path.empty())
        return kRoot;
    if (const auto found = folders_.find(path); found != folders_.end())
        return found->second;
    const auto slash = path.rfind('/');
    const uint64_t parent = folder_of(slash == std::string::npos ? "" : path.substr(0, slash));
    const uint64_t inode = kFolder + fixed_.size();
    fixed_[inode] = {
        inode, slash == std::string::npos ? path : path.substr(slash + 1), true, 0, parent, {}};
    return folders_[path] = inode;
}

std::optional<FileSystem::Entry> FileSystem::find(uint64_t inode) const {
    if (const auto found = fixed_.find(inode); found != fixed_.end())
        return found->second;
    const std::lock_guard lock(mutex_);
    const auto dmabuf = inode < kDmabuf || inode >= kFolder
                            ? dmabufs_.end()
                            : dmabufs_.find(static_cast<uint32_t>(inode - kDmabuf));
    if (dmabuf == dmabufs_.end())
        return std::nullopt;
    return Entry{inode, fmt::format("dmabuf-{}", dmabuf->first),
                 false, dmabuf->second.storage->size(),
                 kRoot, {}};
}

std::optional<FileSystem::Entry> FileSystem::find_child(uint64_t parent,
                                                        const std::string& name) const {
    for (const Entry& entry : children(parent))
        if (entry.name == name)
            return entry;
    return std::nullopt;
}

std::vector<FileSystem::Entry> FileSystem::children(uint64_t parent) const {
    std::vector<Entry> all;
    for (const auto& [inode, entry] : fixed_)
        if (entry.parent == parent && inode != kRoot)
            all.push_back(entry);
    const std::lock_guard lock(mutex_);
    for (const auto& [number, dmabuf] : dmabufs_)
        if (parent == kRoot)
            all.push_back({kDmabuf + number,
                           fmt::format("dmabuf-{}", number),
                           false,
                           dmabuf.storage->size(),
                           kRoot,
                           {}});
    return all;
}

// Contents

std::shared_ptr<Storage> FileSystem::find_storage(uint64_t inode, uint64_t offset, uint64_t* into,
                                                  bool write) const {
    if (inode > kRender && inode < kKfd)
        return state_.find_mapping(static_cast<uint32_t>(inode - kRender), offset, into);
    const std::lock_guard lock(mutex_);
    const auto found = dmabufs_.find(static_cast<uint32_t>(inode - kDmabuf));
    if (inode < kDmabuf || found == dmabufs_.end() || (write && !found->second.writable))
        return nullptr;
    *into = offset;
    return found->second.storage;
}

int64_t FileSystem::read(uint64_t inode, uint64_t offset, void* data, size_t size) {
    if (inode == kKfd) {  // doorbells, registers
        std::memset(data, 0, size);
        return static_cast<int64_t>(size);
    }
    uint64_t into = 0;
    const auto storage = find_storage(inode, offset, &into, false);
    if (storage == nullptr)
        return -EIO;
    const size_t count =
        into >= storage->size() ? 0 : std::min<size_t>(size, storage->size() - into);
    std::memcpy(data, storage->data() + into, count);
    return static_cast<int64_t>(count);
}

int64_t FileSystem::write(uint64_t inode, uint64_t offset, const void* data, size_t size) {
    if (inode == kKfd)
        return static_cast<int64_t>(size);
    uint64_t into = 0;
    const auto storage = find_storage(inode, offset, &into, true);
    if (storage == nullptr || size > storage->size() || into > storage->size() - size)
        return -EIO;
    std::memcpy(storage->data() + into, data, size);
    return static_cast<int64_t>(size);
}

std::string FileSystem::control_text() const {
    std::string text =
        state_.describe();  // whose lock is held by calls that install(), so not within ours
    const std::lock_guard lock(mutex_);
    for (const auto& [number, dmabuf] : dmabufs_)
        text += fmt::format("dmabuf {} owner={} opened={}\n", number, dmabuf.owner, dmabuf.opened);
    return text;
}

Result<void> FileSystem::control(const std::string& text) {
    CKPT_ASSIGN(std::vector<Fault> faults, parse_faults(text));
    state_.set_faults(std::move(faults));
    return {};
}

// Dma-bufs: what the kernel would install as a descriptor is a name that its owner opens once.

int FileSystem::install(pid_t owner, const std::shared_ptr<Storage>& storage, bool writable) {
    watch(owner);
    const std::lock_guard lock(mutex_);
    dmabufs_[next_dmabuf_] = {owner, storage, writable, 0};
    return static_cast<int>(next_dmabuf_++);
}

void FileSystem::uninstall(uint32_t number) {
    const std::lock_guard lock(mutex_);
    dmabufs_.erase(number);
}

int FileSystem::open_dmabuf(uint64_t inode, bool for_writing) {
    const std::lock_guard lock(mutex_);
    const auto found = dmabufs_.find(static_cast<uint32_t>(inode - kDmabuf));
    if (found == dmabufs_.end())
        return -ENOENT;
    if (for_writing && !found->second.writable)
        return -EACCES;
    ++found->second.opened;
    return 0;
}

std::shared_ptr<Storage> FileSystem::dmabuf(uint64_t inode) const {
    const std::lock_guard lock(mutex_);
    const auto found = dmabufs_.find(static_cast<uint32_t>(inode - kDmabuf));
    return inode < kDmabuf || inode >= kFolder || found == dmabufs_.end() ? nullptr
                                                                          : found->second.storage;
}

void FileSystem::release_dmabuf(uint64_t inode) {
    const std::lock_guard lock(mutex_);
    const auto found = dmabufs_.find(static_cast<uint32_t>(inode - kDmabuf));
    if (found != dmabufs_.end() && --found->second.opened == 0)
        dmabufs_.erase(found);
}

// Processes

int FileSystem::open_kfd(const Caller& caller, State::File* out) {
    reap();
    watch(caller.process());
    return state_.open(caller, out);
}

void FileSystem::watch(pid_t process) {
    ScopedFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, process, 0)));
    const std::lock_guard lock(mutex_);
    if (pidfd)
        watched_.emplace(process, std::move(pidfd));
}

void FileSystem::reap() {
    std::vector<pid_t> ended;
    {
        const std::lock_guard lock(mutex_);
        for (const auto& [process, pidfd] : watched_)
            if (has_ended(pidfd.get()))
                ended.push_back(process);
    }
    for (const pid_t process : ended)
        end(process);
}

// Dma-bufs that were never opened were descriptors of it alone.
void FileSystem::end(pid_t process) {
    state_.end_process(process);
    const std::lock_guard lock(mutex_);
    watched_.erase(process);
    std::erase_if(dmabufs_, [&](const auto& one) {
        return one.second.owner == process && one.second.opened == 0;
    });
}

bool FileSystem::tick() {
    reap();
    return state_.run_queues() > 0;
}

}  // namespace checkpointd::kfd_emulation
