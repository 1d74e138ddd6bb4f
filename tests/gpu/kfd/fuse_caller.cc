// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/gpu/kfd/fuse_caller.h"

#include <fmt/format.h>
#include <sys/uio.h>
#include <cstdlib>
#include <fstream>

namespace checkpointd::kfd_emulation {

namespace {

constexpr unsigned kCapSysAdmin = 21;
constexpr unsigned kCapCheckpointRestore = 40;

// The number behind "NAME:" of a file of /proc; 0 where there is none.
uint64_t number_in(const std::string& path, const std::string& name, int base) {
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);)
        if (line.compare(0, name.size() + 1, name + ":") == 0)
            return std::strtoull(line.c_str() + name.size() + 1, nullptr, base);
    return 0;
}

std::string status_of(pid_t task) {
    return fmt::format("/proc/{}/status", task);
}

}  // namespace

FuseCaller::FuseCaller(FileSystem* files, pid_t thread, std::function<bool()> interrupted)
    : files_(files),
      thread_(thread),
      process_(static_cast<pid_t>(number_in(status_of(thread), "Tgid", 10))),
      interrupted_(std::move(interrupted)) {}

pid_t FuseCaller::tracer_of(pid_t process) const {
    return static_cast<pid_t>(number_in(status_of(process), "TracerPid", 10));
}

bool FuseCaller::is_capable() const {
    const uint64_t effective = number_in(status_of(thread_), "CapEff", 16);
    return (effective >> kCapSysAdmin & 1) != 0 || (effective >> kCapCheckpointRestore & 1) != 0;
}

bool FuseCaller::read(uint64_t address, void* data, size_t size) const {
    const iovec local{data, size};
    const iovec remote{reinterpret_cast<void*>(address), size};
    return process_vm_readv(thread_, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(size);
}

bool FuseCaller::write(uint64_t address, const void* data, size_t size) const {
    const iovec local{const_cast<void*>(data), size};
    const iovec remote{reinterpret_cast<void*>(address), size};
    return process_vm_writev(thread_, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(size);
}

// stat() would ask this very file system.
uint64_t FuseCaller::inode_of(uint32_t fd) const {
    return number_in(fmt::format("/proc/{}/fdinfo/{}", thread_, fd), "ino", 10);
}

std::shared_ptr<Storage> FuseCaller::dmabuf(uint32_t fd) const {
    return files_->dmabuf(inode_of(fd));
}

uint32_t FuseCaller::render_minor(uint32_t fd) const {
    const uint64_t inode = inode_of(fd);
    return inode > FileSystem::kRender && inode < FileSystem::kKfd
               ? static_cast<uint32_t>(inode - FileSystem::kRender)
               : 0;
}

int FuseCaller::install(const std::shared_ptr<Storage>& storage, bool writable) const {
    return files_->install(process_, storage, writable);
}

}  // namespace checkpointd::kfd_emulation
