// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The real devices.
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "plugins/amdgpu/drm_engine.h"

namespace checkpointd::amdgpu {
namespace {

constexpr const char* kKfdPath = "/dev/kfd";
constexpr unsigned kDrmMajor = 226;
constexpr unsigned kFirstRenderMinor = 128;
constexpr unsigned kLastRenderMinor = 255;

int open_device(const char* path) {
    const int fd = ::open(path, O_RDWR | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

// The kernel answers EINTR and EAGAIN to some of these while queues are evicted.
int call(int fd, unsigned long request, void* args) {
    constexpr int kMostTries = 1000;
    for (int i = 0; i < kMostTries; ++i) {
        if (ioctl(fd, request, args) == 0)
            return 0;
        if (errno != EINTR && errno != EAGAIN)
            break;
    }
    return -errno;
}

class KernelKfd : public Kfd {
  public:
    bool is_kfd(const struct stat& status) const override {
        struct stat own {};
        return S_ISCHR(status.st_mode) && stat(kKfdPath, &own) == 0 &&
               own.st_rdev == status.st_rdev;
    }

    std::optional<uint32_t> render_minor(const struct stat& status) const override {
        const unsigned number = minor(status.st_rdev);
        if (!S_ISCHR(status.st_mode) || major(status.st_rdev) != kDrmMajor ||
            number < kFirstRenderMinor || number > kLastRenderMinor)
            return std::nullopt;
        return number;
    }

    std::string topology_root() const override { return "/sys/class/kfd/kfd/topology"; }

    int open_kfd() const noexcept override { return open_device(kKfdPath); }

    int open_render(uint32_t number) const noexcept override {
        std::array<char, 64> path{};
        constexpr char kPrefix[] = "/dev/dri/renderD";
        std::memcpy(path.data(), kPrefix, sizeof(kPrefix) - 1);
        std::to_chars(path.data() + sizeof(kPrefix) - 1, path.data() + path.size() - 1, number);
        return open_device(path.data());
    }

    int version(int kfd_fd, kfd_ioctl_get_version_args* out) const noexcept override {
        return call(kfd_fd, AMDKFD_IOC_GET_VERSION, out);
    }

    int available_memory(int kfd_fd,
                         kfd_ioctl_get_available_memory_args* args) const noexcept override {
        return call(kfd_fd, AMDKFD_IOC_AVAILABLE_MEMORY, args);
    }

    int criu_op(int kfd_fd, kfd_ioctl_criu_args* args) const noexcept override {
        return call(kfd_fd, AMDKFD_IOC_CRIU_OP, args);
    }

    Result<std::unique_ptr<CopyEngine>> open_engine(uint32_t render_minor) const override {
        CKPT_ASSIGN(const drm::Api api, drm::load_api());
        ScopedFd node(open_render(render_minor));
        if (!node)
            return fail_errno(fmt::format("/dev/dri/renderD{}", render_minor), "cannot be opened",
                              -node.get());
        CKPT_ASSIGN(std::unique_ptr<CopyEngine> engine, DrmEngine::open(api, std::move(node)));
        return engine;
    }
};

}  // namespace

std::unique_ptr<Kfd> make_kfd() {
    return std::make_unique<KernelKfd>();
}

}  // namespace checkpointd::amdgpu
