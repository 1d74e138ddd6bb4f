// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "tests/gpu/kfd/page_cache.h"
#include "tests/gpu/kfd/state.h"
#include "tests/gpu/kfd/topology.h"

namespace checkpointd::kfd_emulation {

// What lies in the file system, and what its files do, told apart from how FUSE asks for it:
//   kfd, renderD128 ...   the devices
//   dmabuf-N              contents of an exported buffer object; there until it was opened and
//   closed, or its owner died topology/...          as /sys/class/kfd/kfd/topology control read:
//   the state, one line for each thing; written: faults, one line for each (parse_faults())
// Any thread.
class FileSystem {
  public:
    static constexpr uint64_t kRoot = 1;
    static constexpr uint64_t kKfd = 0x4b464400;
    static constexpr uint64_t kControl = 0x4b464401;
    static constexpr uint64_t kRender = 0x4b460000;   // and the minor number
    static constexpr uint64_t kDmabuf = 0x100000000;  // and N
    static constexpr uint64_t kFolder =
        0x200000000;  // and the index of a folder or file of the topology
    static constexpr uint64_t kDeviceSize = uint64_t{1} << 62;

    struct Entry {
        uint64_t inode = 0;
        std::string name;
        bool is_folder = false;
        uint64_t size = 0;
        uint64_t parent = kRoot;
        std::string text;  // of a file of the topology
    };

    FileSystem(const Machine& machine, PageCache* pages);
    ~FileSystem();

    std::optional<Entry> find(uint64_t inode) const;
    std::optional<Entry> find_child(uint64_t parent, const std::string& name) const;
    std::vector<Entry> children(uint64_t parent) const;

    State& state() { return state_; }

    // A process that opens /dev/kfd; it and who gets dma-bufs are watched until they end. 0, or
    // -errno.
    int open_kfd(const Caller& caller, State::File* out);
    // Bytes, or -errno. Render nodes, dma-bufs.
    int64_t read(uint64_t inode, uint64_t offset, void* data, size_t size);
    int64_t write(uint64_t inode, uint64_t offset, const void* data, size_t size);
    std::string control_text() const;
    Result<void> control(const std::string& text);

    int install(pid_t owner, const std::shared_ptr<Storage>& storage, bool writable);
    void uninstall(uint32_t number);
    int open_dmabuf(uint64_t inode, bool for_writing);
    void release_dmabuf(uint64_t inode);
    // Null: there is none.
    std::shared_ptr<Storage> dmabuf(uint64_t inode) const;

    // Ends what belongs to processes that are gone, and lets the queues work. Whether there was any
    // work.
    bool tick();

  private:
    struct Dmabuf {
        pid_t owner = 0;
        std::shared_ptr<Storage> storage;
        bool writable = false;
        unsigned opened = 0;
    };

    State::Options state_options(PageCache* pages);
    void add_topology(const Machine& machine);
    uint64_t folder_of(const std::string& path);
    std::shared_ptr<Storage> find_storage(uint64_t inode, uint64_t offset, uint64_t* into,
                                          bool write) const;
    void watch(pid_t process);
    void reap();
    void end(pid_t process);

    const std::vector<Gpu> gpus_;
    std::map<uint64_t, Entry> fixed_;
    std::map<std::string, uint64_t> folders_;  // of the topology, by path
    State state_;
    mutable std::mutex mutex_;
    std::map<pid_t, ScopedFd> watched_;
    std::map<uint32_t, Dmabuf> dmabufs_;
    uint32_t next_dmabuf_ = 1;
};

// Lines "CALL fail|fail-after|delay|hang [ERRNO or ms] [NTH]".
Result<std::vector<Fault>> parse_faults(const std::string& text);

}  // namespace checkpointd::kfd_emulation
