// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "plugins/amdgpu/held_process.h"
#include "plugins/amdgpu/images.h"
#include "plugins/amdgpu/settings.h"
#include "plugins/amdgpu/transfer.h"
#include "plugins/plugin.h"

namespace checkpointd::amdgpu {

// Tells whether two descriptors of this process lead to one open file. kcmp(2).
Result<bool> same_open_file(int one, int other);

// What was told to the journal, undone: the queues of the process run again. Nothing where it has
// ended, or is not paused. For this it is traced for a moment: KFD listens to nobody else.
Result<void> undo_pause(const Kfd& kfd, const std::string& record);

// The processes of one checkpoint that use AMD GPUs. Members have the names of plugin.h's calls,
// and what stands there holds.
class Checkpoint {
  public:
    using Deadline = CopyEngine::Deadline;

    Checkpoint(const ckptd_host& host, const Kfd& kfd, Settings settings);

    // False: nobody has /dev/kfd open.
    Result<bool> probe(const std::vector<pid_t>& pids);
    Result<void> prepare(const std::vector<pid_t>& pids);
    // False: not ours.
    Result<bool> dump_file(pid_t pid, int fd, uint32_t id);
    Result<bool> handle_vma(pid_t pid, const ckptd_vma& vma);
    Result<void> transfer(const TransferOptions& options);
    Result<void> complete();
    Result<void> resume();

  private:
    // An open /dev/kfd of the tasks, with one task that has it.
    struct User {
        pid_t pid;
        int number;
    };
    struct Held {
        User user;
        HeldProcess process;
        uint64_t undo = 0;
        uint32_t id = 0;  // of its image; 0: nobody has asked yet
    };

    Result<std::vector<User>> find_users(const std::vector<pid_t>& pids,
                                         std::vector<Error>* blockers) const;
    Result<void> look_at(pid_t pid, std::vector<User>& users, std::vector<Error>* blockers) const;
    Result<void> hold(const User& user, const std::vector<pid_t>& pids);
    // Puts this into the journal in the place of what stands there of it.
    Result<void> write_down(Held& held, pid_t owner);
    Result<void> check_owners() const;
    Held* by_pid(pid_t pid);
    Result<bool> dump_kfd(Held& held, pid_t pid, uint32_t id);
    Result<bool> dump_render_node(pid_t pid, uint32_t minor, uint32_t id);
    Result<void> save_contents(Held& held, TransferPipeline& pipeline);
    Result<uint64_t> add_gpu(Held& held, const kfd_criu_device_bucket& device,
                             TransferPipeline& pipeline);
    OpenImage open_image() const;

    const ckptd_host& host_;
    const Kfd& kfd_;
    const Settings settings_;
    Topology here_;
    std::deque<Held> held_;
    bool is_transferred_ = false;
};

}  // namespace checkpointd::amdgpu
