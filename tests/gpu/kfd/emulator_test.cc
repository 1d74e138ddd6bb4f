// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The devices as kfd-emulator serves them, seen by real processes: kfd-counter, who stops and
// traces it, and a process that restores. In a mount namespace of its own, with a /dev and a /run
// of its own.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

#include "plugins/amdgpu/kfd.h"
#include "tests/gpu/kfd/file_system.h"

namespace checkpointd::kfd_emulation {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr auto kPatience = std::chrono::seconds(60);

void must(bool good, const char* what) {
    if (!good)
        throw std::system_error(errno, std::generic_category(), what);
}

void bind_file(const std::string& from, const std::string& to) {
    std::filesystem::create_directories(std::filesystem::path(to).parent_path());
    std::ofstream(to).put(' ');
    must(mount(from.c_str(), to.c_str(), nullptr, MS_BIND, nullptr) == 0, "bind");
}

template <typename Condition>
bool wait_for(Condition condition) {
    const auto end = std::chrono::steady_clock::now() + kPatience;
    while (!condition() && std::chrono::steady_clock::now() < end)
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    return condition();
}

struct Status {
    uint64_t rounds = 0, wrong = 0, failed = 0, pid = 0;
};

// The emulator and one program on it.
class KfdEmulator : public ::testing::Test {
  protected:
    static void SetUpTestSuite() {
        if (access("/dev/fuse", R_OK | W_OK) != 0)
            GTEST_SKIP() << "no /dev/fuse";
        must(unshare(CLONE_NEWNS) == 0 &&
                 mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0,
             "unshare");
        must(mount("tmpfs", "/run", "tmpfs", 0, nullptr) == 0, "mount /run");
        std::filesystem::create_directories("/run/dev");
        for (const char* name : {"null", "fuse", "urandom"})
            bind_file(std::string("/dev/") + name, std::string("/run/dev/") + name);
        must(mount("/run/dev", "/dev", nullptr, MS_BIND | MS_REC, nullptr) == 0, "mount /dev");
        std::filesystem::create_directories("/run/kfd-emulated");
    }

    void SetUp() override {
        if (access("/dev/fuse", R_OK | W_OK) != 0)
            GTEST_SKIP() << "no /dev/fuse";
        emulator_ =
            start({KFD_EMULATOR, "/run/kfd-emulated", "1", "0x1001:128:64", "0x1002:129:64"});
        ASSERT_TRUE(wait_for([] { return std::filesystem::exists("/run/kfd-emulated/kfd"); }));
        for (const char* name : {"kfd", "dri/renderD128", "dri/renderD129"})
            bind_file(
                std::string("/run/kfd-emulated/") + std::filesystem::path(name).filename().string(),
                std::string("/dev/") + name);
        kfd_ = amdgpu::make_kfd();
    }

    void TearDown() override {
        kfd_.reset();
        end(counter_);
        end(emulator_);
        for (const char* name :
             {"/dev/kfd", "/dev/dri/renderD128", "/dev/dri/renderD129", "/run/kfd-emulated"})
            umount2(name, MNT_DETACH);
    }

    static pid_t start(std::vector<std::string> words) {
        std::vector<char*> arguments;
        for (std::string& word : words)
            arguments.push_back(word.data());
        arguments.push_back(nullptr);
        const pid_t child = fork();
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            execv(arguments[0], arguments.data());
            _exit(127);
        }
        return child;
    }
    static void end(pid_t child) {
        if (child > 0 && kill(child, SIGKILL) == 0)
            waitpid(child, nullptr, 0);
    }
    void start_counter() {
        std::filesystem::remove("/run/counter-0");
        counter_ = start({KFD_COUNTER, "/run/counter", "1", "1"});
        ASSERT_TRUE(wait_for([] { return look().rounds > 3; }));
    }
    static Status look() {
        Status status;
        std::ifstream("/run/counter-0").read(reinterpret_cast<char*>(&status), sizeof status);
        return status;
    }
    static std::string control() {
        std::ifstream file("/run/kfd-emulated/control");
        return {std::istreambuf_iterator<char>(file), {}};
    }
    static void set_faults(const std::string& text) {
        std::ofstream("/run/kfd-emulated/control") << text << '\n';
    }
    // A copy of the program's descriptor of /dev/kfd.
    ScopedFd take_kfd() const {
        const ScopedFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, counter_, 0)));
        for (const auto& entry :
             std::filesystem::directory_iterator("/proc/" + std::to_string(counter_) + "/fd")) {
            if (std::filesystem::read_symlink(entry) != "/dev/kfd")
                continue;
            const int number = std::stoi(entry.path().filename());
            return ScopedFd(static_cast<int>(syscall(SYS_pidfd_getfd, pidfd.get(), number, 0)));
        }
        return {};
    }
    void seize() const {
        must(ptrace(PTRACE_SEIZE, counter_, nullptr, nullptr) == 0, "seize");
        must(ptrace(PTRACE_INTERRUPT, counter_, nullptr, nullptr) == 0, "interrupt");
        waitpid(counter_, nullptr, __WALL);
    }
    int op(int fd, uint32_t operation, kfd_ioctl_criu_args* args) const {
        args->op = operation;
        return kfd_->criu_op(fd, args);
    }

    pid_t emulator_ = 0;
    pid_t counter_ = 0;
    std::unique_ptr<amdgpu::Kfd> kfd_;
};

struct Saved {
    kfd_ioctl_criu_args args{};
    std::vector<kfd_criu_device_bucket> devices;
    std::vector<kfd_criu_bo_bucket> buffers;
    std::vector<uint8_t> private_data;

    void resize() {
        devices.resize(args.num_devices);
        buffers.resize(args.num_bos);
        private_data.resize(args.priv_data_size);
        args.devices = reinterpret_cast<uintptr_t>(devices.data());
        args.bos = reinterpret_cast<uintptr_t>(buffers.data());
        args.priv_data = reinterpret_cast<uintptr_t>(private_data.data());
    }
    void close_all() const {
        for (const kfd_criu_bo_bucket& buffer : buffers)
            if (buffer.dmabuf_fd != KFD_INVALID_FD)
                close(static_cast<int>(buffer.dmabuf_fd));
    }
    const kfd_criu_bo_bucket& window() const {
        for (const kfd_criu_bo_bucket& buffer : buffers)
            if ((buffer.alloc_flags & KFD_IOC_ALLOC_MEM_FLAGS_PUBLIC) != 0)
                return buffer;
        return buffers.at(0);
    }
};

// Half of the window as the program sees it is what the device's memory holds: both count.
void expect_same(pid_t program, const kfd_criu_bo_bucket& buffer) {
    std::vector<uint64_t> seen(512);
    std::vector<uint64_t> stored(512);
    const ScopedFd memory(
        open(("/proc/" + std::to_string(program) + "/mem").c_str(), O_RDONLY | O_CLOEXEC));
    EXPECT_EQ(pread(memory.get(), seen.data(), 4096, static_cast<off_t>(buffer.addr)), 4096);
    EXPECT_EQ(pread(static_cast<int>(buffer.dmabuf_fd), stored.data(), 4096, 0), 4096);
    EXPECT_EQ(seen, stored);
    EXPECT_NE(seen[1], 0u);
}

TEST_F(KfdEmulator, AProgramIsSavedByItsTracerAndGoesOn) {
    start_counter();
    const ScopedFd fd = take_kfd();
    struct stat about {};
    fstat(fd.get(), &about);
    EXPECT_TRUE(kfd_->is_kfd(about));
    Saved saved;
    EXPECT_EQ(op(fd.get(), KFD_CRIU_OP_PROCESS_INFO, &saved.args), -EBADF) << "nobody traces it";
    seize();
    int elsewhere = 0;
    std::thread([&] { elsewhere = op(fd.get(), KFD_CRIU_OP_PROCESS_INFO, &saved.args); }).join();
    EXPECT_EQ(elsewhere, -EBADF) << "not the thread that traces it";
    ASSERT_EQ(op(fd.get(), KFD_CRIU_OP_PROCESS_INFO, &saved.args), 0);
    EXPECT_THAT(control(), HasSubstr("evicted=1 paused=1"));
    EXPECT_EQ(saved.args.num_bos, 12u);
    saved.resize();
    ASSERT_EQ(op(fd.get(), KFD_CRIU_OP_CHECKPOINT, &saved.args), 0);
    EXPECT_THAT(control(), HasSubstr("dmabuf"));
    expect_same(counter_, saved.window());
    saved.close_all();
    ptrace(PTRACE_DETACH, counter_, nullptr, nullptr);
    const uint64_t rounds = look().rounds;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_LE(look().rounds, rounds + 1) << "its queues are evicted";
    seize();
    EXPECT_EQ(op(fd.get(), KFD_CRIU_OP_UNPAUSE, &saved.args), 0);
    ptrace(PTRACE_DETACH, counter_, nullptr, nullptr);
    EXPECT_TRUE(wait_for([&] { return look().rounds > rounds + 5; }));
    EXPECT_EQ(look().wrong + look().failed, 0u);
    EXPECT_TRUE(wait_for([] { return control().find("dmabuf") == std::string::npos; }))
        << control();
    end(counter_);
    EXPECT_TRUE(wait_for([] { return control().empty(); })) << control();
}

TEST_F(KfdEmulator, FaultsAreSetByAFile) {
    start_counter();
    const ScopedFd fd = take_kfd();
    seize();
    set_faults("process-info fail 5 1");
    Saved saved;
    EXPECT_EQ(op(fd.get(), KFD_CRIU_OP_PROCESS_INFO, &saved.args), -EIO);
    EXPECT_EQ(op(fd.get(), KFD_CRIU_OP_PROCESS_INFO, &saved.args), 0);
    set_faults("copy-from fail 5 0");
    saved.resize();
    ASSERT_EQ(op(fd.get(), KFD_CRIU_OP_CHECKPOINT, &saved.args), 0);
    char byte = 0;
    EXPECT_EQ(pread(static_cast<int>(saved.buffers[0].dmabuf_fd), &byte, 1, 0), -1);
    saved.close_all();
}

struct PrimeHandle {  // drm_prime_handle of include/uapi/drm/drm.h
    uint32_t handle = 0, flags = 0;
    int32_t fd = -1;
};

TEST_F(KfdEmulator, DmabufsHaveHandlesInARenderNode) {
    start_counter();
    const ScopedFd fd = take_kfd();
    seize();
    Saved saved;
    ASSERT_EQ(op(fd.get(), KFD_CRIU_OP_PROCESS_INFO, &saved.args), 0);
    saved.resize();
    ASSERT_EQ(op(fd.get(), KFD_CRIU_OP_CHECKPOINT, &saved.args), 0);
    const ScopedFd render(kfd_->open_render(128));
    const auto handle_of = [&](int dmabuf) {
        PrimeHandle args{0, 0, dmabuf};
        return ioctl(render.get(), _IOWR('d', 0x2e, PrimeHandle), &args) == 0 ? args.handle : 0;
    };
    std::vector<uint32_t> handles;
    for (const kfd_criu_bo_bucket& buffer : saved.buffers)
        if (buffer.dmabuf_fd != KFD_INVALID_FD)
            handles.push_back(handle_of(static_cast<int>(buffer.dmabuf_fd)));
    ASSERT_GT(handles.size(), 1u);
    EXPECT_EQ(std::set<uint32_t>(handles.begin(), handles.end()).size(), handles.size());
    EXPECT_EQ(handle_of(static_cast<int>(saved.buffers[0].dmabuf_fd)), handles[0]);
    EXPECT_EQ(handle_of(render.get()), 0u);
    uint64_t list[3] = {};
    EXPECT_EQ(ioctl(render.get(), _IOWR('d', 0x59, list), list), -1);
    EXPECT_EQ(errno, EINVAL);
    saved.close_all();
}

// What becomes of the restored process is written to a pipe; it stays until it is killed.
struct Restored {
    int error = 0;
    uint64_t offset = 0;
    uint64_t number = 0;
};

Restored restore(const amdgpu::Kfd& kfd, Saved* saved) {
    for (kfd_criu_device_bucket& device : saved->devices)
        device.drm_fd =
            static_cast<uint32_t>(kfd.open_render(device.actual_gpu_id == 0x1001 ? 128 : 129));
    saved->resize();
    saved->args.op = KFD_CRIU_OP_RESTORE;
    Restored out;
    out.error = kfd.criu_op(kfd.open_kfd(), &saved->args);
    if (out.error != 0)
        return out;
    const kfd_criu_bo_bucket& window = saved->window();
    out.offset = window.restored_offset;
    const uint64_t number = 4711;
    must(pwrite(static_cast<int>(window.dmabuf_fd), &number, sizeof number, 8) == sizeof number,
         "write a dma-buf");
    const ScopedFd render(kfd.open_render(128));
    auto* seen =
        static_cast<uint64_t*>(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, render.get(),
                                    static_cast<off_t>(window.restored_offset)));
    must(seen != MAP_FAILED, "map");
    out.number = seen[1];
    saved->close_all();
    return out;
}

TEST_F(KfdEmulator, AnotherProcessRestores) {
    start_counter();
    ScopedFd fd = take_kfd();
    seize();
    Saved saved;
    ASSERT_EQ(op(fd.get(), KFD_CRIU_OP_PROCESS_INFO, &saved.args), 0);
    saved.resize();
    ASSERT_EQ(op(fd.get(), KFD_CRIU_OP_CHECKPOINT, &saved.args), 0);
    const uint64_t offset = saved.window().offset;
    saved.close_all();
    end(counter_);
    counter_ = 0;
    int ends[2];
    ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
    const pid_t child = fork();
    if (child == 0) {
        const Restored out = restore(*kfd_, &saved);
        must(write(ends[1], &out, sizeof out) == sizeof out, "tell");
        pause();
    }
    Restored out;
    ASSERT_EQ(read(ends[0], &out, sizeof out), static_cast<ssize_t>(sizeof out));
    EXPECT_EQ(out.error, 0);
    EXPECT_EQ(out.number, 4711u);
    EXPECT_NE(out.offset, offset);
    EXPECT_THAT(control(), HasSubstr("evicted=1 paused=0 blocked=1"));
    kfd_ioctl_criu_args resume{};
    resume.pid = static_cast<uint32_t>(child);
    EXPECT_EQ(op(fd.get(), KFD_CRIU_OP_RESUME, &resume), -EBADF) << "the descriptor of the dead";
    const ScopedFd own(kfd_->open_kfd());
    EXPECT_EQ(op(own.get(), KFD_CRIU_OP_RESUME, &resume), 0);
    EXPECT_THAT(control(), Not(HasSubstr("evicted=1")));
    end(child);
}

TEST_F(KfdEmulator, WithoutACapabilityNothingIsSaved) {
    const pid_t child = fork();
    if (child == 0) {
        kfd_ioctl_criu_args args{};
        const bool dropped = setresuid(65534, 65534, 65534) == 0;
        const int fd = kfd_->open_kfd();
        _exit(dropped && fd >= 0 && kfd_->criu_op(fd, &args) == -EACCES ? 0 : 1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace checkpointd::kfd_emulation
