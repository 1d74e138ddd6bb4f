// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "plugins/amdgpu/kfd.h"
#include "tests/gpu/kfd/copy_engine.h"
#include "tests/gpu/kfd/state.h"

namespace checkpointd::kfd_emulation {

// The emulated driver in the caller's own process, for unit tests and benchmarks. Its descriptors
// are real (memfds that are told apart by their sizes), so that one that is lost can be counted;
// dma-bufs are the memory itself. Which process and thread calls is what act_as() said in this
// thread of the test; memory is always the test's own. Any thread.
class InProcessKfd : public amdgpu::Kfd {
  public:
    struct Options {
        std::vector<Gpu> gpus;
        std::string topology_root;      // see topology.h
        uint64_t bytes_per_second = 0;  // of each GPU's copy engine; 0: copies take no time
        bool sampled = false;           // EmulatedEngine::Options
        uint32_t minor_version = KFD_IOCTL_MINOR_VERSION;
    };
    struct Identity {
        pid_t process = 0;
        pid_t thread = 0;
        bool capable = true;
    };

    explicit InProcessKfd(Options options);

    // Without it a thread is itself, and capable.
    void act_as(Identity identity);
    // Whom the kernel would name as the one that traces the first thread of a process.
    void set_tracer(pid_t process, pid_t thread);

    State& state() { return *state_; }
    CopyQueue& copy_queue(uint32_t render_minor) const { return *copy_queues_.at(render_minor); }
    // Any call of the driver. 0, or -errno.
    int call(int fd, uint32_t command, void* data) const;

    bool is_kfd(const struct stat& status) const override;
    std::optional<uint32_t> render_minor(const struct stat& status) const override;
    std::string topology_root() const override { return options_.topology_root; }
    int open_kfd() const noexcept override;
    int open_render(uint32_t minor) const noexcept override;
    int version(int kfd_fd, kfd_ioctl_get_version_args* out) const noexcept override;
    int available_memory(int kfd_fd,
                         kfd_ioctl_get_available_memory_args* args) const noexcept override;
    int criu_op(int kfd_fd, kfd_ioctl_criu_args* args) const noexcept override;
    Result<std::unique_ptr<amdgpu::CopyEngine>> open_engine(uint32_t render_minor) const override;

  private:
    class Caller;

    Identity identity() const;

    const Options options_;
    std::unique_ptr<State> state_;
    std::map<uint32_t, std::shared_ptr<CopyQueue>> copy_queues_;
    mutable std::mutex mutex_;
    mutable std::vector<State::File> files_;
    std::map<std::thread::id, Identity> identities_;
    std::map<pid_t, pid_t> tracers_;
};

}  // namespace checkpointd::kfd_emulation
