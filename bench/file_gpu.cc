// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Devices for the benchmark of GPU restores, in place of plugins/amdgpu/kernel_kfd.cc: /dev/kfd and
// render nodes are empty files, KFD answers what the machine below says and keeps nothing, and
// copies take the time that a bandwidth gives them, by sleeping. So whatever the GPUs' part costs
// the processor is the plugin's own: reading files.
//
// CKPT_BENCH_GPU: FOLDER GPUS BYTES_OF_EACH_PROCESS BUFFER_BYTES BYTES_PER_SECOND
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "plugins/amdgpu/engine_test_util.h"

namespace checkpointd::amdgpu {
namespace {

// Files are told apart by their sizes.
constexpr off_t kKfdSize = 1ll << 40;     // and the PID of who opened it
constexpr off_t kRenderSize = 1ll << 41;  // and the minor number
constexpr off_t kMost = 1 << 23;
constexpr size_t kPrivateBytes = 4096;
constexpr uint32_t kFirstMinor = 128;
constexpr uint32_t kFirstGpu = 0x1001;
constexpr uint64_t kAddress = 0x7e0000000000;

struct Machine {
    std::string folder;
    uint32_t gpus = 1;
    uint64_t bytes = 0;
    uint64_t buffer_bytes = 1;
    double bytes_per_second = 0;
};

Machine read_machine() {
    Machine machine;
    const char* text = std::getenv("CKPT_BENCH_GPU");
    std::istringstream(text == nullptr ? "" : text) >> machine.folder >> machine.gpus >>
        machine.bytes >> machine.buffer_bytes >> machine.bytes_per_second;
    return machine;
}

class FileKfd : public Kfd {
  public:
    FileKfd() : machine_(read_machine()), engines_(machine_.gpus) {
        for (FakeGpu& gpu : engines_) {
            gpu.bytes_per_second = machine_.bytes_per_second;
            gpu.moves_data = false;
        }
    }

    bool is_kfd(const struct stat& status) const override {
        return status.st_size >= kKfdSize && status.st_size < kKfdSize + kMost;
    }
    std::optional<uint32_t> render_minor(const struct stat& status) const override {
        if (status.st_size < kRenderSize || status.st_size >= kRenderSize + kMost)
            return std::nullopt;
        return static_cast<uint32_t>(status.st_size - kRenderSize);
    }
    std::string topology_root() const override { return machine_.folder + "/topology"; }

    int open_kfd() const noexcept override { return memory_file(kKfdSize + getpid()); }
    int open_render(uint32_t minor) const noexcept override {
        return memory_file(kRenderSize + minor);
    }
    int version(int, kfd_ioctl_get_version_args* out) const noexcept override {
        *out = {KFD_IOCTL_MAJOR_VERSION, KFD_IOCTL_MINOR_VERSION};
        return 0;
    }

    int available_memory(int, kfd_ioctl_get_available_memory_args* args) const noexcept override {
        args->available = UINT64_MAX;
        return 0;
    }

    int criu_op(int fd, kfd_ioctl_criu_args* args) const noexcept override {
        switch (args->op) {
            case KFD_CRIU_OP_PROCESS_INFO:
                return tell_process(fd, *args);
            case KFD_CRIU_OP_CHECKPOINT:
                return describe(fd, *args);
            case KFD_CRIU_OP_RESTORE:
                return give_descriptors(*args);
            default:
                return 0;
        }
    }

    Result<std::unique_ptr<CopyEngine>> open_engine(uint32_t minor) const override {
        return std::make_unique<FakeEngine>(engines_.at(minor - kFirstMinor));
    }

  private:
    static int memory_file(off_t size) noexcept {
        const int fd = memfd_create("bench", MFD_CLOEXEC);
        return fd >= 0 && ftruncate(fd, size) == 0 ? fd : -errno;
    }

    static uint32_t pid_of(int fd) noexcept {
        struct stat status {};
        return fstat(fd, &status) == 0 ? static_cast<uint32_t>(status.st_size - kKfdSize) : 0;
    }

    uint32_t buffers() const noexcept {
        return static_cast<uint32_t>((machine_.bytes + machine_.buffer_bytes - 1) /
                                     machine_.buffer_bytes);
    }

    int tell_process(int fd, kfd_ioctl_criu_args& args) const noexcept {
        args.pid = pid_of(fd);
        args.num_devices = machine_.gpus;
        args.num_bos = buffers();
        args.priv_data_size = kPrivateBytes;
        return 0;
    }

    // All of a process is on one GPU: the processes take turns.
    int describe(int fd, const kfd_ioctl_criu_args& args) const noexcept {
        auto* devices = reinterpret_cast<kfd_criu_device_bucket*>(args.devices);
        auto* buckets = reinterpret_cast<kfd_criu_bo_bucket*>(args.bos);
        for (uint32_t i = 0; i < args.num_devices; ++i)
            devices[i] = {kFirstGpu + i, kFirstGpu + i, KFD_INVALID_FD, 0};
        uint64_t left = machine_.bytes;
        for (uint32_t i = 0; i < args.num_bos; ++i) {
            kfd_criu_bo_bucket& bucket = buckets[i];
            bucket.addr = kAddress + i * machine_.buffer_bytes;
            bucket.size = std::min(left, machine_.buffer_bytes);
            bucket.offset = bucket.addr;
            bucket.gpu_id = kFirstGpu + pid_of(fd) % machine_.gpus;
            bucket.alloc_flags = KFD_IOC_ALLOC_MEM_FLAGS_VRAM;
            left -= bucket.size;
        }
        return give_descriptors(args);
    }

    static int give_descriptors(const kfd_ioctl_criu_args& args) noexcept {
        auto* buckets = reinterpret_cast<kfd_criu_bo_bucket*>(args.bos);
        for (uint32_t i = 0; i < args.num_bos; ++i) {
            const int fd = memory_file(0);
            if (fd < 0)
                return fd;
            buckets[i].dmabuf_fd = static_cast<uint32_t>(fd);
            buckets[i].restored_offset = buckets[i].offset;
        }
        return 0;
    }

    const Machine machine_;
    mutable std::deque<FakeGpu> engines_;
};

}  // namespace

std::unique_ptr<Kfd> make_kfd() {
    return std::make_unique<FileKfd>();
}

}  // namespace checkpointd::amdgpu
