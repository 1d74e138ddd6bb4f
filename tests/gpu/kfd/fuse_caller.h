// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <functional>

#include "core/kernel/proc_status.h"
#include "tests/gpu/kfd/file_system.h"

namespace checkpointd::kfd_emulation {

// The thread behind a request of FUSE, as /proc shows it.
class FuseCaller : public Caller {
  public:
    FuseCaller(FileSystem* files, pid_t thread, std::function<bool()> interrupted);

    pid_t thread() const override { return thread_; }
    pid_t process() const override { return process_; }
    pid_t tracer_of(pid_t process) const override;
    pid_t innermost(pid_t process) const override { return innermost_pid(process); }
    bool is_capable() const override;
    bool read(uint64_t address, void* data, size_t size) const override;
    bool write(uint64_t address, const void* data, size_t size) const override;
    uint32_t render_minor(uint32_t fd) const override;
    int install(const std::shared_ptr<Storage>& storage, bool writable) const override;
    void uninstall(uint32_t fd) const override { files_->uninstall(fd); }
    bool is_interrupted() const override { return interrupted_(); }
    // Behind one of its descriptors; null: it is none.
    std::shared_ptr<Storage> dmabuf(uint32_t fd) const;

  private:
    uint64_t inode_of(uint32_t fd) const;

    FileSystem* files_;
    pid_t thread_;
    pid_t process_;
    std::function<bool()> interrupted_;
};

}  // namespace checkpointd::kfd_emulation
