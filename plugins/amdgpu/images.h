// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The plugin's image files, readable for CRIU's plugin and the other way round. Each begins with
// the number of the bytes that follow, in eight bytes of the machine's order.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "plugins/amdgpu/amdgpu.pb.h"
#include "plugins/amdgpu/topology.h"

namespace checkpointd::amdgpu {

inline constexpr uint64_t kImageHeader = 8;
inline constexpr uint32_t kNoHandle = 0xffffffff;

// IDs are those of files.img; pages are those of one GPU (number of the image) in the order of the
// buffers.
std::string kfd_image_name(uint32_t id);
std::string render_image_name(uint32_t id);
std::string pages_image_name(uint32_t id, uint32_t gpu_id);

// By a name, created or opened for reading. None where a file to be read is not there.
using OpenImage = std::function<Result<ScopedFd>(const std::string& name)>;

// Whether the contents of a buffer are in the pages file: only memory of the GPU and of the driver
// is copied.
bool has_contents(uint32_t alloc_flags);

// The header of a file whose contents somebody else writes.
Result<void> write_image_header(int fd, const std::string& name, uint64_t size);
// kBadImage unless just so many bytes follow the header.
Result<void> check_image_size(int fd, const std::string& name, uint64_t size);

Result<void> write_process(const OpenImage& open, uint32_t id, const pb::Process& process);
// None: `id` is no /dev/kfd. What does not go together (counts, GPUs that are not described, sizes
// beyond measure) is kBadImage.
Result<std::optional<pb::Process>> read_process(const OpenImage& open, uint32_t id);
Result<void> write_render_node(const OpenImage& open, uint32_t id, const pb::RenderNode& node);
Result<std::optional<pb::RenderNode>> read_render_node(const OpenImage& open, uint32_t id);

// `names`: gpu_id here to the one in the image. GPUs that are not named are left out: the process
// cannot see them.
void put_topology(const Topology& here, const std::map<uint32_t, uint32_t>& names,
                  pb::Process& out);
Topology topology_of(const pb::Process& process);

}  // namespace checkpointd::amdgpu
