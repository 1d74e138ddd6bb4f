// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "plugins/amdgpu/amdgpu.pb.h"
#include "plugins/amdgpu/kfd.h"
#include "plugins/amdgpu/room.h"
#include "plugins/amdgpu/topology_map.h"

namespace checkpointd::amdgpu {

// Render nodes that a restored task has opened: one for each GPU, which its program and KFD have in
// common, because KFD lets memory be mapped through that one alone. Everything was allocated before
// the task was made.
class TaskRenderNodes {
  public:
    explicit TaskRenderNodes(const Topology& here);
    // A descriptor, which stays this object's, or -errno. Async-signal-safe.
    int open(const Kfd& kfd, uint32_t minor) noexcept;

  private:
    struct Entry {
        uint32_t minor;
        int fd;
    };
    std::vector<Entry> entries_;
};

// A process of an image, made ready in the worker. What is noexcept is called in the task, and
// async-signal-safe.
class RestoredProcess {
  public:
    // One buffer's contents in the image.
    struct Content {
        size_t buffer = 0;  // index in the image
        uint32_t user_gpu = 0;
        uint32_t render_minor = 0;
        uint64_t file_offset = 0;
        uint64_t size = 0;
    };

    // `map`: as map_gpus() made it.
    static Result<RestoredProcess> prepare(uint32_t id, const pb::Process& process,
                                           const Topology& here, const GpuMap& map);

    uint32_t id() const { return id_; }
    std::string name() const { return fmt::format("pid {} (AMD GPU)", pid_); }
    const std::vector<Content>& contents() const { return contents_; }
    uint64_t content_bytes() const;
    void add_to(NeededRoom& room) const;
    // Of one GPU's pages file.
    std::map<uint32_t, uint64_t> bytes_of_gpus() const;
    std::string content_name(const Content& content) const;

    // KFD's RESTORE. The new /dev/kfd, or -errno.
    int restore(const Kfd& kfd, TaskRenderNodes& nodes) noexcept;
    // Of contents()[index], after restore(): what the kernel put in this task. Taken over by the
    // caller.
    int dmabuf(size_t index) const noexcept {
        return static_cast<int>(buckets_[contents_[index].buffer].dmabuf_fd);
    }
    // What takes the place of a mapping, after restore(). False: it is none of the process's
    // buffers.
    bool map(const char* path, uint64_t* offset, int* fd) const noexcept;

  private:
    RestoredProcess() = default;
    void add_buffer(const pb::Buffer& buffer, uint32_t render_minor,
                    std::map<uint32_t, uint64_t>& ends);

    uint32_t id_ = 0;
    uint32_t pid_ = 0;
    std::vector<kfd_criu_device_bucket> devices_;
    std::vector<uint32_t> minors_;      // of the devices, here
    std::vector<uint32_t> old_minors_;  // where the checkpoint was made
    std::vector<kfd_criu_bo_bucket> buckets_;
    std::vector<Content> contents_;
    std::string private_data_;
    uint32_t object_count_ = 0;
    int kfd_fd_ = -1;
};

}  // namespace checkpointd::amdgpu
