// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The plugin's way to its devices in the test build: those of kfd-emulator. All but one thing are
// the real calls on /dev/kfd and /dev/dri/renderD*: no file system can install a descriptor in who
// calls it, so the number that comes back in the place of a dma-buf's descriptor is the N of a file
// dmabuf-N, which is opened here.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <cerrno>
#include <cstring>

#include "plugins/amdgpu/kfd.h"
#include "tests/gpu/kfd/copy_engine.h"
#include "tests/gpu/kfd/file_system.h"

namespace checkpointd::amdgpu {

namespace {

using kfd_emulation::CopyQueue;
using kfd_emulation::EmulatedEngine;
using kfd_emulation::FileSystem;

constexpr char kFolder[] = "/run/kfd-emulated";

// PREFIX and the number in decimal, where nothing may be allocated.
class Path {
  public:
    Path(const char* prefix, uint32_t number) noexcept {
        const size_t length = std::strlen(prefix);
        std::memcpy(text_, prefix, length);
        char digits[10];
        size_t count = 0;
        do {
            digits[count++] = static_cast<char>('0' + number % 10);
            number /= 10;
        } while (number > 0);
        for (size_t i = 0; i < count; ++i)
            text_[length + i] = digits[count - 1 - i];
        text_[length + count] = 0;
    }
    const char* text() const { return text_; }

  private:
    char text_[64];
};

int open_file(const char* path, int flags) noexcept {
    const int fd = open(path, flags | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int open_dmabuf(const kfd_criu_bo_bucket& bucket, bool restoring) noexcept {
    const bool writable = restoring || (bucket.alloc_flags & KFD_IOC_ALLOC_MEM_FLAGS_WRITABLE) != 0;
    return open_file(Path("/run/kfd-emulated/dmabuf-", bucket.dmabuf_fd).text(),
                     writable ? O_RDWR : O_RDONLY);
}

class EmulatedKfd : public Kfd {
  public:
    EmulatedKfd() {
        if (stat(kFolder, &folder_) != 0)
            folder_ = {};
    }

    bool is_kfd(const struct stat& status) const override {
        return is_ours(status) && status.st_ino == FileSystem::kKfd;
    }
    std::optional<uint32_t> render_minor(const struct stat& status) const override {
        if (!is_ours(status) || status.st_ino <= FileSystem::kRender ||
            status.st_ino >= FileSystem::kKfd)
            return std::nullopt;
        return static_cast<uint32_t>(status.st_ino - FileSystem::kRender);
    }
    std::string topology_root() const override { return fmt::format("{}/topology", kFolder); }
    int open_kfd() const noexcept override { return open_file("/dev/kfd", O_RDWR); }
    int open_render(uint32_t minor) const noexcept override {
        return open_file(Path("/dev/dri/renderD", minor).text(), O_RDWR);
    }
    int version(int kfd_fd, kfd_ioctl_get_version_args* out) const noexcept override {
        return ioctl(kfd_fd, AMDKFD_IOC_GET_VERSION, out) == 0 ? 0 : -errno;
    }
    int available_memory(int kfd_fd,
                         kfd_ioctl_get_available_memory_args* args) const noexcept override {
        return ioctl(kfd_fd, AMDKFD_IOC_AVAILABLE_MEMORY, args) == 0 ? 0 : -errno;
    }
    int criu_op(int kfd_fd, kfd_ioctl_criu_args* args) const noexcept override;
    Result<std::unique_ptr<CopyEngine>> open_engine(uint32_t) const override {
        return std::make_unique<EmulatedEngine>(
            EmulatedEngine::Options{std::make_shared<CopyQueue>(0)});
    }

  private:
    bool is_ours(const struct stat& status) const {
        return folder_.st_dev != 0 && status.st_dev == folder_.st_dev && S_ISREG(status.st_mode);
    }

    struct stat folder_ {};
};

int EmulatedKfd::criu_op(int kfd_fd, kfd_ioctl_criu_args* args) const noexcept {
    if (ioctl(kfd_fd, AMDKFD_IOC_CRIU_OP, args) != 0)
        return -errno;
    if (args->op != KFD_CRIU_OP_CHECKPOINT && args->op != KFD_CRIU_OP_RESTORE)
        return 0;
    auto* buckets = reinterpret_cast<kfd_criu_bo_bucket*>(args->bos);
    int error = 0;
    for (uint32_t i = 0; i < args->num_bos; ++i) {
        if (buckets[i].dmabuf_fd == KFD_INVALID_FD)
            continue;
        const int fd = open_dmabuf(buckets[i], args->op == KFD_CRIU_OP_RESTORE);
        error = fd < 0 ? fd : error;
        buckets[i].dmabuf_fd = fd < 0 ? KFD_INVALID_FD : static_cast<uint32_t>(fd);
    }
    for (uint32_t i = 0; i < args->num_bos && error != 0; ++i)
        if (buckets[i].dmabuf_fd != KFD_INVALID_FD)
            close(static_cast<int>(buckets[i].dmabuf_fd));
    return error;
}

}  // namespace

std::unique_ptr<Kfd> make_kfd() {
    return std::make_unique<EmulatedKfd>();
}

}  // namespace checkpointd::amdgpu
