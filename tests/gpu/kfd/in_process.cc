// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/gpu/kfd/in_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>
#include <cerrno>

#include "core/kernel/proc_status.h"

namespace checkpointd::kfd_emulation {

namespace {

constexpr off_t kKfdSize = 0x4b4644ll << 20;
constexpr off_t kRenderSize = 0x44524dll << 20;
constexpr off_t kMost = 1 << 20;

// The kernel finds out whether memory is there.
bool copy_own(uint64_t address, void* data, size_t size, bool write) {
    const iovec local{data, size};
    const iovec remote{reinterpret_cast<void*>(address), size};
    const auto copied = write ? process_vm_writev(getpid(), &local, 1, &remote, 1, 0)
                              : process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
    return copied == static_cast<ssize_t>(size);
}

int make_file(const char* name, off_t size) {
    ScopedFd fd(memfd_create(name, MFD_CLOEXEC));
    return fd && ftruncate(fd.get(), size) == 0 ? fd.release() : -errno;
}

std::optional<uint32_t> number_of(off_t size, off_t first) {
    return size >= first && size < first + kMost
               ? std::optional(static_cast<uint32_t>(size - first))
               : std::nullopt;
}

std::optional<uint32_t> number_of(int fd, off_t first) {
    struct stat status {};
    return fstat(fd, &status) == 0 ? number_of(status.st_size, first) : std::nullopt;
}

}  // namespace

class InProcessKfd::Caller : public kfd_emulation::Caller {
  public:
    explicit Caller(const InProcessKfd& kfd) : kfd_(kfd), identity_(kfd.identity()) {}
    pid_t thread() const override { return identity_.thread; }
    pid_t process() const override { return identity_.process; }
    pid_t tracer_of(pid_t process) const override {
        const std::lock_guard lock(kfd_.mutex_);
        const auto found = kfd_.tracers_.find(process);
        return found == kfd_.tracers_.end() ? 0 : found->second;
    }
    pid_t innermost(pid_t process) const override { return innermost_pid(process); }
    bool is_capable() const override { return identity_.capable; }
    bool read(uint64_t address, void* data, size_t size) const override {
        return copy_own(address, data, size, false);
    }
    bool write(uint64_t address, const void* data, size_t size) const override {
        return copy_own(address, const_cast<void*>(data), size, true);
    }
    uint32_t render_minor(uint32_t fd) const override {
        return number_of(static_cast<int>(fd), kRenderSize).value_or(0);
    }
    int install(const std::shared_ptr<Storage>& storage, bool writable) const override {
        const auto path = fmt::format("/proc/self/fd/{}", storage->fd());
        const int fd = ::open(path.c_str(), (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
        return fd < 0 ? -errno : fd;
    }
    void uninstall(uint32_t fd) const override { close(static_cast<int>(fd)); }

  private:
    const InProcessKfd& kfd_;
    const Identity identity_;
};

InProcessKfd::InProcessKfd(Options options) : options_(std::move(options)) {
    State::Options about;
    about.minor_version = options_.minor_version;
    about.read_memory = [](pid_t, uint64_t address, void* data, size_t size) {
        return copy_own(address, data, size, false);
    };
    about.write_memory = [](pid_t, uint64_t address, const void* data, size_t size) {
        return copy_own(address, const_cast<void*>(data), size, true);
    };
    state_ = std::make_unique<State>(options_.gpus, about);
    for (const Gpu& gpu : options_.gpus)
        copy_queues_[gpu.render_minor] = std::make_shared<CopyQueue>(options_.bytes_per_second);
}

void InProcessKfd::act_as(Identity identity) {
    const std::lock_guard lock(mutex_);
    identities_[std::this_thread::get_id()] = identity;
}

void InProcessKfd::set_tracer(pid_t process, pid_t thread) {
    const std::lock_guard lock(mutex_);
    tracers_[process] = thread;
}

InProcessKfd::Identity InProcessKfd::identity() const {
    const std::lock_guard lock(mutex_);
    const auto found = identities_.find(std::this_thread::get_id());
    return found == identities_.end() ? Identity{getpid(), gettid()} : found->second;
}

int InProcessKfd::call(int fd, uint32_t command, void* data) const {
    const auto number = number_of(fd, kKfdSize);
    if (!number)
        return -ENOTTY;
    State::File file;
    {
        const std::lock_guard lock(mutex_);
        file = files_.at(*number);
    }
    return state_->ioctl(file, Caller(*this), command, data);
}

bool InProcessKfd::is_kfd(const struct stat& status) const {
    return number_of(status.st_size, kKfdSize).has_value();
}

std::optional<uint32_t> InProcessKfd::render_minor(const struct stat& status) const {
    return number_of(status.st_size, kRenderSize);
}

int InProcessKfd::open_kfd() const noexcept {
    State::File file;
    if (const int error = state_->open(Caller(*this), &file); error != 0)
        return error;
    const std::lock_guard lock(mutex_);
    files_.push_back(file);
    return make_file("kfd", kKfdSize + static_cast<off_t>(files_.size()) - 1);
}

int InProcessKfd::open_render(uint32_t minor) const noexcept {
    return copy_queues_.count(minor) == 0 ? -ENOENT : make_file("render", kRenderSize + minor);
}

int InProcessKfd::version(int kfd_fd, kfd_ioctl_get_version_args* out) const noexcept {
    return call(kfd_fd, AMDKFD_IOC_GET_VERSION, out);
}

int InProcessKfd::available_memory(int kfd_fd,
                                   kfd_ioctl_get_available_memory_args* args) const noexcept {
    return call(kfd_fd, AMDKFD_IOC_AVAILABLE_MEMORY, args);
}

int InProcessKfd::criu_op(int kfd_fd, kfd_ioctl_criu_args* args) const noexcept {
    return call(kfd_fd, AMDKFD_IOC_CRIU_OP, args);
}

Result<std::unique_ptr<amdgpu::CopyEngine>> InProcessKfd::open_engine(uint32_t render_minor) const {
    const auto found = copy_queues_.find(render_minor);
    if (found == copy_queues_.end())
        return fail(ErrorKind::kNotFound, fmt::format("renderD{}", render_minor),
                    "there is no such device");
    EmulatedEngine::Options options;
    options.queue = found->second;
    options.sampled = options_.sampled;
    options.fault = [this](const char* name) { return state_->fault_of_copy(name); };
    return std::make_unique<EmulatedEngine>(std::move(options));
}

}  // namespace checkpointd::kfd_emulation
