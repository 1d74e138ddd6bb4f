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
#include "tests/gpu/kfd/descriptors.h"
#include "tests/gpu/kfd/file_system.h"
#include "tests/gpu/kfd/path.h"

namespace checkpointd::amdgpu {

namespace {

using kfd_emulation::CopyQueue;
using kfd_emulation::EmulatedEngine;
using kfd_emulation::FileSystem;
using kfd_emulation::open_file;
using kfd_emulation::Path;

constexpr char kFolder[] = "/run/kfd-emulated";

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
    return ioctl(kfd_fd, AMDKFD_IOC_CRIU_OP, args) == 0 ? kfd_emulation::open_dmabufs(*args)
                                                        : -errno;
}

}  // namespace

std::unique_ptr<Kfd> make_kfd() {
    return std::make_unique<EmulatedKfd>();
}

}  // namespace checkpointd::amdgpu
