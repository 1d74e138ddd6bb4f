// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The only door between the AMDGPU plugin and its devices. kernel_kfd.cc is the real one; a test
// build of the plugin links tests/gpu/emulated_kfd.cc in its place.
#pragma once

#include <linux/kfd_ioctl.h>
#include <sys/stat.h>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "core/base/error.h"

namespace checkpointd::amdgpu {

enum class Direction { kToDevice, kFromDevice };

// One copy between host memory that was pinned and a buffer object that was attached. All in bytes.
struct Copy {
    Direction direction = Direction::kToDevice;
    uint64_t buffer = 0;  // of attach()
    uint64_t offset = 0;  // into the buffer
    std::byte* host = nullptr;
    uint64_t size = 0;
};

// Moves the contents of buffer objects of one GPU. Used by one thread at a time. What it has
// attached and pinned it lets go when destroyed; copies that are under way then are waited for,
// however long that takes.
class CopyEngine {
  public:
    using Deadline = std::chrono::steady_clock::time_point;

    virtual ~CopyEngine() = default;
    // Lets the device reach host memory: whole pages, borrowed, must outlive the engine.
    virtual Result<void> pin(std::byte* memory, uint64_t size) = 0;
    // A buffer object of any process, by its dma-buf descriptor (borrowed: not needed once this has
    // returned).
    virtual Result<uint64_t> attach(int dmabuf_fd, uint64_t size) = 0;
    // None of its copies may be under way.
    virtual Result<void> detach(uint64_t buffer) = 0;
    // Begins a copy, and returns its fence. At least two may be under way; they end in the order of
    // their beginning.
    virtual Result<uint64_t> start(const Copy& copy) = 0;
    // Waits until the copy has ended. kTimeout: it is under way yet, and so is every later one; the
    // host memory may be written to or read at any time.
    virtual Result<void> wait(uint64_t fence, Deadline deadline) = 0;
};

// KFD and the render nodes. Members that are noexcept are async-signal-safe: a restored task calls
// them, forked from a threaded process. No mutable state: threads may share it.
class Kfd {
  public:
    virtual ~Kfd() = default;

    // Whether a file is /dev/kfd; the minor number of the render node that it is (128 and up).
    virtual bool is_kfd(const struct stat& status) const = 0;
    virtual std::optional<uint32_t> render_minor(const struct stat& status) const = 0;
    // The folder that holds nodes/N/{gpu_id,properties,...}; /sys/class/kfd/kfd/topology.
    virtual std::string topology_root() const = 0;

    // Close-on-exec, read and write. A descriptor, or -errno.
    virtual int open_kfd() const noexcept = 0;
    virtual int open_render(uint32_t minor) const noexcept = 0;
    // AMDKFD_IOC_GET_VERSION. 0, or -errno.
    virtual int version(int kfd_fd, kfd_ioctl_get_version_args* out) const noexcept = 0;
    // AMDKFD_IOC_AVAILABLE_MEMORY, which KFD has since 1.9: what it would still give of the memory
    // of the GPU that is called gpu_id here. 0, or -errno.
    virtual int available_memory(int kfd_fd,
                                 kfd_ioctl_get_available_memory_args* args) const noexcept = 0;
    // AMDKFD_IOC_CRIU_OP. 0, or -errno. Where an answer of CHECKPOINT or RESTORE holds dma-buf
    // descriptors (anything but KFD_INVALID_FD in kfd_criu_bo_bucket::dmabuf_fd) they are the
    // caller's.
    virtual int criu_op(int kfd_fd, kfd_ioctl_criu_args* args) const noexcept = 0;

    // kUnsupported, with a remedy, where the copies' library is missing.
    virtual Result<std::unique_ptr<CopyEngine>> open_engine(uint32_t render_minor) const = 0;
};

// Defined once in each build of the plugin. Opens nothing.
std::unique_ptr<Kfd> make_kfd();

}  // namespace checkpointd::amdgpu
