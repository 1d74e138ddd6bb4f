// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/gpu/kfd/descriptors.h"

#include <fcntl.h>
#include <unistd.h>
#include <cerrno>

#include "tests/gpu/kfd/path.h"

namespace checkpointd::kfd_emulation {

namespace {

int open_dmabuf(const kfd_criu_bo_bucket& bucket, bool restoring) noexcept {
    const bool writable = restoring || (bucket.alloc_flags & KFD_IOC_ALLOC_MEM_FLAGS_WRITABLE) != 0;
    return open_file(Path("/run/kfd-emulated/dmabuf-", bucket.dmabuf_fd).text(),
                     writable ? O_RDWR : O_RDONLY);
}

}  // namespace

int open_dmabufs(const kfd_ioctl_criu_args& args) noexcept {
    if (args.op != KFD_CRIU_OP_CHECKPOINT && args.op != KFD_CRIU_OP_RESTORE)
        return 0;
    auto* buckets = reinterpret_cast<kfd_criu_bo_bucket*>(args.bos);
    int error = 0;
    for (uint32_t i = 0; i < args.num_bos; ++i) {
        if (buckets[i].dmabuf_fd == KFD_INVALID_FD)
            continue;
        const int fd = open_dmabuf(buckets[i], args.op == KFD_CRIU_OP_RESTORE);
        error = fd < 0 ? fd : error;
        buckets[i].dmabuf_fd = fd < 0 ? KFD_INVALID_FD : static_cast<uint32_t>(fd);
    }
    for (uint32_t i = 0; i < args.num_bos && error != 0; ++i)
        if (buckets[i].dmabuf_fd != KFD_INVALID_FD)
            close(static_cast<int>(buckets[i].dmabuf_fd));
    return error;
}

}  // namespace checkpointd::kfd_emulation
