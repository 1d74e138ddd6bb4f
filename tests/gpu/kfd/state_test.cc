// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The emulated driver keeps the rules of the real one. Expectations are those of kfd_chardev.c of
// Linux 6.x.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "tests/gpu/kfd/copy_engine.h"
#include "tests/gpu/kfd/in_process.h"
#include "tests/gpu/kfd/layout.h"
#include "tests/gpu/kfd/topology.h"

namespace checkpointd::kfd_emulation {
namespace {

using ::testing::HasSubstr;

constexpr pid_t kProgram = 5000100;  // beyond PID_MAX_LIMIT: nobody has it, in whatever namespace
constexpr pid_t kOther = 200;
constexpr pid_t kWorker = 300;
constexpr pid_t kTracer = 301;
constexpr uint32_t kVram = KFD_IOC_ALLOC_MEM_FLAGS_VRAM | KFD_IOC_ALLOC_MEM_FLAGS_WRITABLE;
constexpr uint64_t kAddress = 0x7f0000000000;
constexpr uint64_t kSize = 1 << 16;

InProcessKfd::Options two_gpus(uint32_t first = 0x1001, uint32_t second = 0x1002) {
    InProcessKfd::Options options;
    options.gpus = {{first, 128, 1 << 20}, {second, 129, 1 << 20}};
    return options;
}

size_t open_descriptors() {
    const auto all = std::filesystem::directory_iterator("/proc/self/fd");
    return static_cast<size_t>(std::distance(begin(all), end(all)));
}

struct Saved {
    kfd_ioctl_criu_args args{};
    std::vector<kfd_criu_device_bucket> devices;
    std::vector<kfd_criu_bo_bucket> buffers;
    std::vector<uint8_t> private_data;

    void point() {
        args.devices = reinterpret_cast<uintptr_t>(devices.data());
        args.bos = reinterpret_cast<uintptr_t>(buffers.data());
        args.priv_data = reinterpret_cast<uintptr_t>(private_data.data());
    }
    void resize() {
        devices.resize(args.num_devices);
        buffers.resize(args.num_bos);
        private_data.resize(args.priv_data_size);
        point();
    }
};

// A program with /dev/kfd open and a VM on each GPU; the test's thread is who traces it, unless it
// says otherwise.
class KfdState : public ::testing::Test {
  protected:
    KfdState() { start(two_gpus()); }
    ~KfdState() override { close_all(); }

    void start(InProcessKfd::Options options) {
        gpus_ = options.gpus;
        kfd_ = std::make_unique<InProcessKfd>(std::move(options));
        kfd_->set_tracer(kProgram, kTracer);
        as_program();
        fd_ = keep(kfd_->open_kfd());
    }
    void as_program() { kfd_->act_as({kProgram, kProgram}); }
    void as_tracer() { kfd_->act_as({kWorker, kTracer}); }
    int keep(int fd) {
        descriptors_.push_back(fd);
        return fd;
    }
    void close_all() {
        for (const int fd : descriptors_)
            close(fd);
        descriptors_.clear();
    }

    template <typename T>
    int call(uint32_t command, T* args) {
        return kfd_->call(fd_, command, args);
    }
    void acquire_all() {
        for (const Gpu& gpu : gpus_) {
            kfd_ioctl_acquire_vm_args args{
                static_cast<uint32_t>(keep(kfd_->open_render(gpu.render_minor))), gpu.id};
            ASSERT_EQ(call(AMDKFD_IOC_ACQUIRE_VM, &args), 0);
        }
    }
    kfd_ioctl_alloc_memory_of_gpu_args alloc(uint32_t gpu, uint32_t flags, uint64_t address,
                                             uint64_t size = kSize, int expected = 0) {
        kfd_ioctl_alloc_memory_of_gpu_args args{};
        args.va_addr = address;
        args.size = size;
        args.gpu_id = gpu;
        args.flags = flags;
        EXPECT_EQ(call(AMDKFD_IOC_ALLOC_MEMORY_OF_GPU, &args), expected);
        return args;
    }
    int map(uint64_t handle, std::vector<uint32_t> gpus) {
        kfd_ioctl_map_memory_to_gpu_args args{handle, reinterpret_cast<uintptr_t>(gpus.data()),
                                              static_cast<uint32_t>(gpus.size()), 0};
        return call(AMDKFD_IOC_MAP_MEMORY_TO_GPU, &args);
    }
    int criu(uint32_t operation, kfd_ioctl_criu_args* args) {
        args->op = operation;
        return kfd_->criu_op(fd_, args);
    }
    int criu(uint32_t operation) {
        kfd_ioctl_criu_args args{};
        return criu(operation, &args);
    }
    Process process(pid_t pid = kProgram) {
        for (const Process& one : kfd_->state().processes())
            if (one.pid == pid)
                return one;
        ADD_FAILURE() << "no process " << pid;
        return Process(0);
    }
    // Two buffer objects, an event and no queue.
    void populate() {
        acquire_all();
        first_ = alloc(gpus_[0].id, kVram | KFD_IOC_ALLOC_MEM_FLAGS_PUBLIC, kAddress);
        second_ = alloc(gpus_[1].id, kVram, kAddress + kSize);
        ASSERT_EQ(map(first_.handle, {gpus_[0].id, gpus_[1].id}), 0);
        ASSERT_EQ(map(second_.handle, {gpus_[1].id}), 0);
        kfd_ioctl_create_event_args event{};
        event.auto_reset = 1;
        ASSERT_EQ(call(AMDKFD_IOC_CREATE_EVENT, &event), 0);
    }
    Saved save() {
        as_tracer();
        Saved saved;
        EXPECT_EQ(criu(KFD_CRIU_OP_PROCESS_INFO, &saved.args), 0);
        saved.resize();
        EXPECT_EQ(criu(KFD_CRIU_OP_CHECKPOINT, &saved.args), 0);
        for (const kfd_criu_bo_bucket& buffer : saved.buffers)
            keep(static_cast<int>(buffer.dmabuf_fd));
        return saved;
    }
    // On `gpus`, by a new process.
    int restore(Saved* saved) {
        kfd_->act_as({kOther, kOther});
        fd_ = keep(kfd_->open_kfd());
        for (size_t i = 0; i < saved->devices.size(); ++i) {
            saved->devices[i].actual_gpu_id = gpus_[i].id;
            saved->devices[i].drm_fd =
                static_cast<uint32_t>(keep(kfd_->open_render(gpus_[i].render_minor)));
        }
        saved->point();
        return criu(KFD_CRIU_OP_RESTORE, &saved->args);
    }

    std::vector<Gpu> gpus_;
    std::unique_ptr<InProcessKfd> kfd_;
    int fd_ = -1;
    std::vector<int> descriptors_;
    kfd_ioctl_alloc_memory_of_gpu_args first_{};
    kfd_ioctl_alloc_memory_of_gpu_args second_{};
};

TEST_F(KfdState, FilesAreToldApart) {
    struct stat about {};
    fstat(fd_, &about);
    EXPECT_TRUE(kfd_->is_kfd(about));
    EXPECT_EQ(kfd_->render_minor(about), std::nullopt);
    fstat(keep(kfd_->open_render(129)), &about);
    EXPECT_FALSE(kfd_->is_kfd(about));
    EXPECT_EQ(kfd_->render_minor(about), 129u);
    EXPECT_EQ(kfd_->open_render(130), -ENOENT);
}

TEST_F(KfdState, OnlyTheOwnerAndItsTracerMayCall) {
    kfd_ioctl_get_version_args version{};
    EXPECT_EQ(kfd_->version(fd_, &version), 0);
    EXPECT_EQ(version.minor_version, static_cast<uint32_t>(KFD_IOCTL_MINOR_VERSION));
    as_tracer();
    EXPECT_EQ(kfd_->version(fd_, &version), -EBADF)
        << "the tracer may checkpoint, and nothing else";
    EXPECT_EQ(criu(KFD_CRIU_OP_UNPAUSE), -EINVAL) << "allowed, but nothing is paused";
    kfd_->act_as({kWorker, kWorker});
    EXPECT_EQ(criu(KFD_CRIU_OP_UNPAUSE), -EBADF) << "another thread of the tracer's process";
    kfd_->act_as({kWorker, kTracer, false});
    EXPECT_EQ(criu(KFD_CRIU_OP_UNPAUSE), -EACCES);
    kfd_->act_as({kProgram, kProgram, false});
    EXPECT_EQ(criu(KFD_CRIU_OP_UNPAUSE), -EACCES);
}

TEST_F(KfdState, MemoryNeedsAVmRoomAndFitsItsKind) {
    alloc(gpus_[0].id, kVram, kAddress, kSize, -ENODEV);
    acquire_all();
    kfd_ioctl_acquire_vm_args again{static_cast<uint32_t>(descriptors_.back()), gpus_[1].id};
    EXPECT_EQ(call(AMDKFD_IOC_ACQUIRE_VM, &again), -EBUSY);
    alloc(77, kVram, kAddress, kSize, -EINVAL);
    alloc(gpus_[0].id, kVram, kAddress, (1 << 20) + 1, -ENOMEM);
    alloc(gpus_[0].id, KFD_IOC_ALLOC_MEM_FLAGS_DOORBELL, kAddress, kPage, -EINVAL);
    alloc(gpus_[0].id, KFD_IOC_ALLOC_MEM_FLAGS_MMIO_REMAP, kAddress, 2 * kPage, -EINVAL);
    const auto doorbell =
        alloc(gpus_[0].id, KFD_IOC_ALLOC_MEM_FLAGS_DOORBELL, kAddress, kDoorbellSlice);
    EXPECT_EQ(doorbell.mmap_offset, 3ull << 62 | static_cast<uint64_t>(gpus_[0].id) << 46);
    const auto object = alloc(gpus_[0].id, kVram, kAddress + kSize);
    EXPECT_EQ(object.handle, make_handle(gpus_[0].id, 2));
    EXPECT_EQ(map(object.handle, {gpus_[0].id}), 0);
    kfd_ioctl_free_memory_of_gpu_args gone{object.handle};
    EXPECT_EQ(call(AMDKFD_IOC_FREE_MEMORY_OF_GPU, &gone), -EBUSY);
    EXPECT_EQ(map(make_handle(gpus_[0].id, 9), {gpus_[0].id}), -ENOMEM);
    EXPECT_EQ(map(object.handle, {5}), -EINVAL);
}

TEST_F(KfdState, CheckpointWantsThePauseAndExactCounts) {
    populate();
    const size_t before = open_descriptors();
    as_tracer();
    Saved saved;
    EXPECT_EQ(criu(KFD_CRIU_OP_PROCESS_INFO, &saved.args), 0);
    EXPECT_EQ(saved.args.num_devices, 2u);
    EXPECT_EQ(saved.args.num_bos, 2u);
    EXPECT_EQ(saved.args.num_objects, 1u);
    EXPECT_EQ(saved.args.pid, static_cast<uint32_t>(kProgram));
    EXPECT_EQ(process().evicted, 1u);
    saved.resize();
    for (uint32_t* one : {&saved.args.num_devices, &saved.args.num_bos, &saved.args.num_objects}) {
        ++*one;
        EXPECT_EQ(criu(KFD_CRIU_OP_CHECKPOINT, &saved.args), -EINVAL);
        --*one;
    }
    ++saved.args.priv_data_size;
    EXPECT_EQ(criu(KFD_CRIU_OP_CHECKPOINT, &saved.args), -EINVAL);
    --saved.args.priv_data_size;
    saved.args.bos = 16;
    EXPECT_EQ(criu(KFD_CRIU_OP_CHECKPOINT, &saved.args), -EFAULT);
    EXPECT_EQ(open_descriptors(), before) << "descriptors of a checkpoint that failed";
    EXPECT_EQ(criu(KFD_CRIU_OP_UNPAUSE), 0);
    EXPECT_EQ(criu(KFD_CRIU_OP_UNPAUSE), -EINVAL);
    EXPECT_EQ(process().evicted, 0u);
    saved.point();
    EXPECT_EQ(criu(KFD_CRIU_OP_CHECKPOINT, &saved.args), -EINVAL);
    EXPECT_EQ(criu(7), -EINVAL);
}

TEST_F(KfdState, EvictionsAreCounted) {
    acquire_all();
    as_tracer();
    EXPECT_EQ(criu(KFD_CRIU_OP_PROCESS_INFO), 0);
    EXPECT_EQ(criu(KFD_CRIU_OP_PROCESS_INFO), 0);
    EXPECT_EQ(criu(KFD_CRIU_OP_UNPAUSE), 0);
    EXPECT_EQ(process().evicted, 1u) << "as in the driver: who pauses twice has lost";
}

TEST_F(KfdState, DmaBufsAreTheMemory) {
    populate();
    uint64_t into = 1;
    const auto memory = kfd_->state().find_mapping(128, first_.mmap_offset + 4096, &into);
    ASSERT_NE(memory, nullptr);
    EXPECT_EQ(into, 4096u);
    EXPECT_EQ(kfd_->state().find_mapping(129, second_.mmap_offset, &into), nullptr)
        << "VRAM that is not public";
    EXPECT_EQ(kfd_->state().find_mapping(128, first_.mmap_offset + kSize, &into), nullptr);
    std::memcpy(memory->data(), "contents", 8);
    const Saved saved = save();
    char found[9] = {};
    EXPECT_EQ(pread(static_cast<int>(saved.buffers[0].dmabuf_fd), found, 8, 0), 8);
    EXPECT_STREQ(found, "contents");
    EXPECT_EQ(saved.buffers[0].offset, first_.mmap_offset);
    EXPECT_EQ(saved.buffers[0].gpu_id, gpus_[0].id);
    kfd_->state().end_process(kProgram);
    EXPECT_EQ(pread(static_cast<int>(saved.buffers[0].dmabuf_fd), found, 8, 0), 8)
        << "they outlive the process";
    EXPECT_EQ(criu(KFD_CRIU_OP_UNPAUSE), -EBADF);
}

TEST_F(KfdState, RestoredElsewhere) {
    populate();
    Saved saved = save();
    kfd_->state().end_process(kProgram);
    start(two_gpus(0x2001, 0x2002));
    ASSERT_EQ(restore(&saved), 0);
    for (const kfd_criu_bo_bucket& buffer : saved.buffers)
        keep(static_cast<int>(buffer.dmabuf_fd));
    EXPECT_NE(saved.buffers[0].restored_offset, 0u);
    const Process now = process(kOther);
    EXPECT_EQ(now.evicted, 1u);
    EXPECT_TRUE(now.mmu_blocked);
    EXPECT_EQ(now.devices[0].user_id, 0x1001u) << "programs go on with the ids of where they began";
    const BufferObject& object = now.devices[0].buffers.at(1);
    EXPECT_EQ(object.address, kAddress);
    EXPECT_EQ(object.mapped, (std::set<size_t>{0, 1}));
    EXPECT_EQ(object.mmap_offset, saved.buffers[0].restored_offset);
    EXPECT_EQ(now.events.count(1), 1u);
    EXPECT_EQ(map(first_.handle, {0x1002}), 0) << "handles are what they were";
    kfd_->act_as({kWorker, kWorker});
    fd_ = keep(kfd_->open_kfd());
    kfd_ioctl_criu_args resume{};
    resume.pid = 4711;
    EXPECT_EQ(criu(KFD_CRIU_OP_RESUME, &resume), -ESRCH);
    resume.pid = kOther;
    EXPECT_EQ(criu(KFD_CRIU_OP_RESUME, &resume), 0);
    EXPECT_EQ(process(kOther).evicted, 0u);
}

TEST_F(KfdState, RestoreRefusesWhatDoesNotFit) {
    populate();
    const Saved good = save();
    struct Case {
        const char* what;
        std::function<void(Saved*)> change;
        int expected;
        size_t left = 0;  // dma-bufs: once they are installed nobody takes them back
    };
    const std::vector<Case> cases = {
        {"version", [](Saved* saved) { saved->private_data[0] = 2; }, -EINVAL},
        {"one device less", [](Saved* saved) { --saved->args.num_devices; }, -EINVAL},
        {"user id 0", [](Saved* saved) { saved->devices[1].user_gpu_id = 0; }, -EINVAL},
        {"a buffer of an unknown GPU", [](Saved* saved) { saved->buffers[1].gpu_id = 5; }, -ENODEV},
        {"too large", [](Saved* saved) { saved->buffers[1].size = 1 << 21; }, -ENOMEM},
        {"too much private data", [](Saved* saved) { ++saved->args.priv_data_size; }, -EINVAL, 2},
        {"too little of it", [](Saved* saved) { --saved->args.priv_data_size; }, -EINVAL, 2},
        {"one object less", [](Saved* saved) { saved->args.num_objects = 0; }, -EINVAL, 2},
        {"no objects' type",
         [](Saved* saved) { saved->private_data[saved->private_data.size() - 32] = 9; }, -EINVAL,
         2},
        {"no devices", [](Saved* saved) { saved->args.num_devices = 0; }, -EINVAL},
    };
    static_assert(sizeof(PrivateEvent) == 32);
    for (const Case& one : cases) {
        close_all();
        start(two_gpus());
        Saved saved = good;
        one.change(&saved);
        const size_t before = open_descriptors();
        EXPECT_EQ(restore(&saved), one.expected) << one.what;
        kfd_->state().end_process(kOther);
        EXPECT_EQ(open_descriptors(), before + 1 + saved.devices.size() + one.left)
            << one.what << ": dma-bufs";
        for (size_t i = 0; i < one.left; ++i)
            keep(static_cast<int>(saved.buffers[i].dmabuf_fd));
    }
}

TEST_F(KfdState, FaultsComeWhenTheyAreDue) {
    acquire_all();
    as_tracer();
    kfd_->state().set_faults({{"process-info", 2, Fault::Kind::kFail, EIO},
                              {"unpause", 1, Fault::Kind::kFailAfter, EIO}});
    EXPECT_EQ(criu(KFD_CRIU_OP_PROCESS_INFO), 0);
    EXPECT_EQ(criu(KFD_CRIU_OP_PROCESS_INFO), -EIO);
    EXPECT_EQ(process().evicted, 1u);
    EXPECT_EQ(criu(KFD_CRIU_OP_UNPAUSE), -EIO);
    EXPECT_EQ(process().evicted, 0u) << "it was done nevertheless";
    kfd_->state().set_faults({{"copy-to", 0, Fault::Kind::kFail, EIO}});
    EXPECT_EQ(kfd_->state().fault_of_copy("copy-from"), 0);
    EXPECT_EQ(kfd_->state().fault_of_copy("copy-to"), EIO);
    EXPECT_EQ(kfd_->state().fault_of_copy("copy-to"), EIO) << "0: each";
}

TEST_F(KfdState, QueuesWorkUnlessEvicted) {
    populate();
    alignas(64) WorkPacket ring[16] = {};
    uint64_t pointers[2] = {};
    kfd_ioctl_create_queue_args args{};
    args.gpu_id = gpus_[0].id;
    args.ring_base_address = reinterpret_cast<uintptr_t>(ring);
    args.ring_size = sizeof ring;
    args.read_pointer_address = reinterpret_cast<uintptr_t>(&pointers[0]);
    args.write_pointer_address = reinterpret_cast<uintptr_t>(&pointers[1]);
    ASSERT_EQ(call(AMDKFD_IOC_CREATE_QUEUE, &args), 0);
    ring[0] = {WorkPacket::kAdd, 1, kAddress, 0, kSize, 5};
    ring[1] = {WorkPacket::kAdd,
               0,
               kAddress + kSize,
               0,
               kSize,
               5};  // of the other GPU, and not mapped on this one
    EXPECT_EQ(kfd_->state().run_queues(), 0u);
    pointers[1] = 2;
    as_tracer();
    EXPECT_EQ(criu(KFD_CRIU_OP_PROCESS_INFO), 0);
    EXPECT_EQ(kfd_->state().run_queues(), 0u);
    EXPECT_EQ(pointers[0], 0u);
    EXPECT_EQ(criu(KFD_CRIU_OP_UNPAUSE), 0);
    EXPECT_EQ(kfd_->state().run_queues(), 1u);
    EXPECT_EQ(kfd_->state().run_queues(), 1u);
    EXPECT_EQ(pointers[0], 2u);
    uint64_t into = 0;
    const auto memory = kfd_->state().find_mapping(128, first_.mmap_offset, &into);
    EXPECT_EQ(reinterpret_cast<const uint64_t*>(memory->data())[kSize / 8 - 1], 5u);
    EXPECT_EQ(process().queues.at(0).packets_failed, 1u);
    as_program();
    kfd_event_data wanted{};
    wanted.event_id = 1;
    kfd_ioctl_wait_events_args wait{reinterpret_cast<uintptr_t>(&wanted), 1, 1, 0, 0};
    EXPECT_EQ(call(AMDKFD_IOC_WAIT_EVENTS, &wait), 0);
    EXPECT_EQ(wait.wait_result, static_cast<uint32_t>(KFD_IOC_WAIT_RESULT_COMPLETE));
    EXPECT_EQ(call(AMDKFD_IOC_WAIT_EVENTS, &wait), 0);
    EXPECT_EQ(wait.wait_result, static_cast<uint32_t>(KFD_IOC_WAIT_RESULT_TIMEOUT))
        << "it resets itself";
    EXPECT_THAT(kfd_->state().describe(), HasSubstr("queue 5000100 gpu=4097 id=0 done=1 failed=1"));
    const Saved saved = save();
    EXPECT_EQ(saved.args.num_objects, 2u);
}

class KfdCopies : public ::testing::Test {
  protected:
    static constexpr uint64_t kBytes = 1 << 20;
    KfdCopies() : storage_(Storage::make(kBytes)) {
        void* memory =
            mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        host_ = static_cast<std::byte*>(memory);
    }
    ~KfdCopies() override { munmap(host_, kBytes); }
    static EmulatedEngine::Deadline in_time() {
        return std::chrono::steady_clock::now() + std::chrono::minutes(1);
    }

    std::shared_ptr<Storage> storage_;
    std::byte* host_ = nullptr;
};

TEST_F(KfdCopies, MoveWhenTheyEnd) {
    EmulatedEngine engine({std::make_shared<CopyQueue>(0)});
    const uint64_t buffer = engine.attach(storage_->fd(), kBytes).value();
    amdgpu::Copy copy{amdgpu::Direction::kToDevice, buffer, 4096, host_, 8192};
    EXPECT_FALSE(engine.start(copy).has_value()) << "not pinned";
    ASSERT_TRUE(engine.pin(host_, kBytes).has_value());
    const auto fence = engine.start(copy);
    ASSERT_TRUE(fence.has_value());
    EXPECT_FALSE(engine.detach(buffer).has_value()) << "in use";
    std::memcpy(host_, "late", 4);
    ASSERT_TRUE(engine.wait(*fence, in_time()).has_value());
    EXPECT_EQ(std::memcmp(storage_->data() + 4096, "late", 4), 0);
    copy.offset = kBytes - 4096;
    EXPECT_FALSE(engine.start(copy).has_value()) << "beyond the end";
    EXPECT_TRUE(engine.detach(buffer).has_value());
}

TEST_F(KfdCopies, ShareTheBandwidthOfTheirGpu) {
    const auto queue = std::make_shared<CopyQueue>(10 * kBytes);
    EmulatedEngine one({queue});
    EmulatedEngine other({queue});
    ASSERT_TRUE(one.pin(host_, kBytes).has_value());
    ASSERT_TRUE(other.pin(host_, kBytes).has_value());
    const auto begin = std::chrono::steady_clock::now();
    const amdgpu::Copy copy{amdgpu::Direction::kFromDevice, 1, 0, host_, kBytes};
    EXPECT_EQ(one.attach(storage_->fd(), kBytes).value(), 1u);
    EXPECT_EQ(other.attach(storage_->fd(), kBytes).value(), 1u);
    ASSERT_TRUE(one.start(copy).has_value());
    const auto fence = other.start(copy);
    const auto early = other.wait(*fence, begin + std::chrono::milliseconds(1));
    ASSERT_FALSE(early.has_value());
    EXPECT_EQ(early.error().kind, ErrorKind::kTimeout);
    ASSERT_TRUE(other.wait(*fence, in_time()).has_value());
    EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(200));
    EXPECT_EQ(queue->bytes(), 2 * kBytes);
}

TEST_F(KfdCopies, SayWhichFailed) {
    int calls = 0;
    EmulatedEngine engine({std::make_shared<CopyQueue>(0), false,
                           [&](const char*) { return ++calls == 1 ? EIO : 0; }});
    ASSERT_TRUE(engine.pin(host_, kBytes).has_value());
    const uint64_t buffer = engine.attach(storage_->fd(), kBytes).value();
    const amdgpu::Copy copy{amdgpu::Direction::kFromDevice, buffer, 0, host_, 4096};
    const uint64_t first = engine.start(copy).value();
    const uint64_t second = engine.start(copy).value();
    EXPECT_TRUE(engine.wait(second, in_time()).has_value());
    const auto failed = engine.wait(first, in_time());
    ASSERT_FALSE(failed.has_value());
    EXPECT_EQ(failed.error().errno_code, EIO);
}

TEST_F(KfdCopies, SamplesCostNothing) {
    EmulatedEngine engine({std::make_shared<CopyQueue>(0), true});
    ASSERT_TRUE(engine.pin(host_, kBytes).has_value());
    const uint64_t buffer = engine.attach(storage_->fd(), kBytes).value();
    std::memset(host_, 7, kBytes);
    const amdgpu::Copy copy{amdgpu::Direction::kToDevice, buffer, 4096, host_, kBytes - 4096};
    ASSERT_TRUE(engine.wait(engine.start(copy).value(), in_time()).has_value());
    EXPECT_EQ(storage_->data()[EmulatedEngine::kSampleStep], std::byte{7});
    EXPECT_EQ(storage_->data()[EmulatedEngine::kSampleStep + EmulatedEngine::kSampleSize],
              std::byte{0});
}

TEST(KfdTopology, IsThatOfTheMachine) {
    EXPECT_FALSE(Machine::parse({"1:128"}, 1).has_value());
    const auto machine = Machine::parse({"0x10:128:64:7", "17:129:64:7", "18:130:32"}, 2);
    ASSERT_TRUE(machine.has_value());
    const auto files = topology_files(*machine);
    EXPECT_EQ(files.at("nodes/1/gpu_id"), "0\n");
    EXPECT_EQ(files.at("nodes/2/gpu_id"), "16\n");
    EXPECT_THAT(files.at("nodes/4/properties"), HasSubstr("drm_render_minor 130\n"));
    EXPECT_THAT(files.at("nodes/2/properties"), HasSubstr("io_links_count 2\n"));
    EXPECT_THAT(files.at("nodes/2/io_links/1/properties"), HasSubstr("type 11\n"));
    EXPECT_THAT(files.at("nodes/0/properties"), HasSubstr("io_links_count 3\n"));
}

}  // namespace
}  // namespace checkpointd::kfd_emulation
