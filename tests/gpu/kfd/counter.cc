// SPDX-License-Identifier: LGPL-2.1-or-later
//
// kfd-counter PREFIX PROCESSES MIB [lend]
//
// A program on /dev/kfd as kfd-emulator serves it, by the driver's own calls as libhsakmt makes
// them. Each process has, on each GPU, a queue and these buffer objects: `device` (VRAM that only
// the GPU reaches, MIB), `window` (VRAM that is mapped), `host` (GTT, mapped), `idle` (GTT that no
// GPU reaches), doorbells, and its queue's memory (USERPTR). Each round the GPUs count every number
// up and copy some of them to where the program looks at them; and the program uses handles that it
// got before. A thread of it waits for an event that never comes, as the runtime of HIP does.
//
// It rests between rounds, so that a machine with few processors has time for what is tested.
//
// With `lend` the first one has a child that inherited its descriptors and does nothing with them,
// as those of PyTorch that load data.
//
// PREFIX-N holds of process N, in 64 bits each: rounds, wrong numbers, failed calls, PID.
#include <fcntl.h>
#include <linux/kfd_ioctl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <thread>
#include <vector>

#include "tests/gpu/kfd/layout.h"
#include "tests/gpu/kfd/state.h"

namespace checkpointd::kfd_emulation {
namespace {

constexpr char kTopology[] = "/run/kfd-emulated/topology/nodes/";
constexpr uint64_t kWindow = 256 << 10;
constexpr uint64_t kHost = 256 << 10;
constexpr uint64_t kRing = 64;  // packets
constexpr uint32_t kFlags = KFD_IOC_ALLOC_MEM_FLAGS_WRITABLE;
constexpr uint32_t kPublicVram =
    KFD_IOC_ALLOC_MEM_FLAGS_VRAM | KFD_IOC_ALLOC_MEM_FLAGS_PUBLIC | kFlags;

[[noreturn]] void give_up(const char* what) {
    std::perror(what);
    std::exit(1);
}

// As kmtIoctl() of libhsakmt.
int call_driver(int fd, unsigned long command, void* data) {
    int answer = 0;
    do
        answer = ioctl(fd, command, data);
    while (answer != 0 && (errno == EINTR || errno == EAGAIN));
    return answer;
}

void* reserve(uint64_t size) {
    void* place =
        mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (place == MAP_FAILED)
        give_up("reserve addresses");
    return place;
}

void map_file(void* place, uint64_t size, int fd, uint64_t offset) {
    if (mmap(place, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
             static_cast<off_t>(offset)) == MAP_FAILED)
        give_up("map a buffer object");
    if (madvise(place, size, MADV_DONTFORK) != 0)
        give_up("madvise");
}

uint64_t address_of(const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer);
}

// The render node of a GPU, as the topology tells it.
uint32_t minor_of(uint32_t gpu_id) {
    for (int node = 0;; ++node) {
        const std::string folder = kTopology + std::to_string(node);
        FILE* id_file = std::fopen((folder + "/gpu_id").c_str(), "re");
        if (id_file == nullptr)
            return 0;
        unsigned id = 0;
        const bool found = std::fscanf(id_file, "%u", &id) == 1 && id == gpu_id;
        std::fclose(id_file);
        if (!found)
            continue;
        FILE* file = std::fopen((folder + "/properties").c_str(), "re");
        char name[64];
        unsigned long long value = 0;
        while (file != nullptr && std::fscanf(file, "%63s %llu", name, &value) == 2)
            if (std::strcmp(name, "drm_render_minor") == 0)
                return std::fclose(file), static_cast<uint32_t>(value);
        return 0;
    }
}

struct QueueMemory {
    alignas(64) WorkPacket ring[kRing];
    volatile uint64_t read = 0;
    volatile uint64_t written = 0;
};

struct Object {
    uint64_t* data = nullptr;  // also the GPU's address
    uint64_t size = 0;
    uint64_t handle = 0;
    uint64_t offset = 0;
};

class Program;

class Device {
  public:
    Device(Program* program, uint32_t gpu_id, uint64_t device_bytes);
    void run_round(uint64_t round);

  private:
    Object make(uint64_t size, uint32_t flags, bool mapped_here, bool visible);
    void make_queue();
    void fill();
    void submit(uint32_t operation, void* destination, const void* source, uint64_t size,
                uint64_t value);
    void wait();
    void check(const uint64_t* numbers, uint64_t first, uint64_t count, uint64_t added);
    void use_old_handles();
    uint64_t seed(uint64_t index) const { return gpu_id_ * 1000003ull + index * 7919; }

    Program* program_;
    uint32_t gpu_id_;
    int render_ = -1;
    Object device_;
    Object window_;
    Object host_;
    QueueMemory* queue_ = nullptr;
    volatile uint64_t* doorbell_ = nullptr;
    uint64_t added_ = 0;
};

class Program {
  public:
    Program(const char* prefix, int number, uint64_t device_bytes);
    [[noreturn]] void run();

    int kfd() const { return kfd_; }
    void count_wrong() { ++status_.wrong; }
    void count_failed() { ++status_.failed; }
    int call(unsigned long command, void* data) {
        const int answer = call_driver(kfd_, command, data);
        if (answer != 0)
            count_failed();
        return answer;
    }
    // At the start, where a failure is the end.
    void must(unsigned long command, void* data, const char* what) const {
        if (call_driver(kfd_, command, data) != 0)
            give_up(what);
    }
    const std::vector<uint32_t>& gpu_ids() const { return gpu_ids_; }

  private:
    void find_gpus();
    void wait_for_nothing();
    void tell();

    struct {
        uint64_t rounds = 0, wrong = 0, failed = 0, pid = 0;
    } status_;
    int status_fd_ = -1;
    int kfd_ = -1;
    std::vector<uint32_t> gpu_ids_;
    std::vector<Device> devices_;
};

Device::Device(Program* program, uint32_t gpu_id, uint64_t device_bytes)
    : program_(program), gpu_id_(gpu_id) {
    const uint32_t minor = minor_of(gpu_id);
    render_ = open(("/dev/dri/renderD" + std::to_string(minor)).c_str(), O_RDWR | O_CLOEXEC);
    kfd_ioctl_acquire_vm_args args{static_cast<uint32_t>(render_), gpu_id};
    program->must(AMDKFD_IOC_ACQUIRE_VM, &args, "AMDKFD_IOC_ACQUIRE_VM");
    device_ = make(device_bytes, KFD_IOC_ALLOC_MEM_FLAGS_VRAM | kFlags, true, false);
    window_ = make(kWindow, kPublicVram, true, true);
    host_ = make(kHost, KFD_IOC_ALLOC_MEM_FLAGS_GTT | kFlags, true, true);
    make(64 << 10, KFD_IOC_ALLOC_MEM_FLAGS_GTT | kFlags, false, true);
    make_queue();
    fill();
}

Object Device::make(uint64_t size, uint32_t flags, bool mapped_here, bool visible) {
    Object object;
    object.size = size;
    object.data = static_cast<uint64_t*>(reserve(size));
    kfd_ioctl_alloc_memory_of_gpu_args args{address_of(object.data), size, 0, 0, gpu_id_, flags};
    program_->must(AMDKFD_IOC_ALLOC_MEMORY_OF_GPU, &args, "AMDKFD_IOC_ALLOC_MEMORY_OF_GPU");
    object.handle = args.handle;
    object.offset = args.mmap_offset;
    uint32_t gpu = gpu_id_;
    kfd_ioctl_map_memory_to_gpu_args map{object.handle, address_of(&gpu), 1, 0};
    if (mapped_here)
        program_->must(AMDKFD_IOC_MAP_MEMORY_TO_GPU, &map, "AMDKFD_IOC_MAP_MEMORY_TO_GPU");
    if (visible)
        map_file(object.data, size, render_, object.offset);
    return object;
}

void Device::make_queue() {
    const uint64_t size = (sizeof(QueueMemory) + kPage - 1) / kPage * kPage;
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        give_up("memory of a queue");
    queue_ = new (memory) QueueMemory;
    kfd_ioctl_alloc_memory_of_gpu_args user{
        address_of(memory), size,    0,
        address_of(memory), gpu_id_, KFD_IOC_ALLOC_MEM_FLAGS_USERPTR | kFlags};
    program_->must(AMDKFD_IOC_ALLOC_MEMORY_OF_GPU, &user, "USERPTR");
    kfd_ioctl_create_queue_args args{};
    args.ring_base_address = address_of(queue_->ring);
    args.ring_size = sizeof queue_->ring;
    args.read_pointer_address = address_of(const_cast<uint64_t*>(&queue_->read));
    args.write_pointer_address = address_of(const_cast<uint64_t*>(&queue_->written));
    args.gpu_id = gpu_id_;
    args.queue_type = KFD_IOC_QUEUE_TYPE_COMPUTE;
    args.queue_percentage = 100;
    args.queue_priority = 7;
    program_->must(AMDKFD_IOC_CREATE_QUEUE, &args, "AMDKFD_IOC_CREATE_QUEUE");
    const Object doorbell =
        make(kDoorbellSlice, KFD_IOC_ALLOC_MEM_FLAGS_DOORBELL | kFlags, false, false);
    map_file(doorbell.data, kDoorbellSlice, program_->kfd(), args.doorbell_offset / kPage * kPage);
    doorbell_ = doorbell.data + args.doorbell_offset % kPage / sizeof(uint64_t);
}

void Device::fill() {
    for (uint64_t i = 0; i < window_.size / 8; ++i)
        window_.data[i] = seed(i);
    for (uint64_t done = 0; done < device_.size / 8; done += host_.size / 8) {
        for (uint64_t i = 0; i < host_.size / 8; ++i)
            host_.data[i] = seed(done + i);
        submit(WorkPacket::kCopy, device_.data + done, host_.data, host_.size, 0);
        wait();
    }
}

void Device::submit(uint32_t operation, void* destination, const void* source, uint64_t size,
                    uint64_t value) {
    WorkPacket& packet = queue_->ring[queue_->written % kRing];
    packet = {operation, 0, address_of(destination), address_of(source), size, value};
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    queue_->written = queue_->written + 1;
    *doorbell_ = queue_->written;
}

void Device::wait() {
    const timespec pause{0, 1000000};
    while (queue_->read != queue_->written)
        nanosleep(&pause, nullptr);
}

void Device::check(const uint64_t* numbers, uint64_t first, uint64_t count, uint64_t added) {
    for (uint64_t i = 0; i < count; ++i)
        if (numbers[i] != seed(first + i) + added)
            program_->count_wrong();
}

// Another piece of `device` in each round; all of `window`, seen by the program and by the GPU.
void Device::run_round(uint64_t round) {
    const uint64_t half = host_.size / 2;
    const uint64_t piece = round % (device_.size / half) * (half / 8);
    ++added_;
    submit(WorkPacket::kAdd, device_.data, nullptr, device_.size, 1);
    submit(WorkPacket::kAdd, window_.data, nullptr, window_.size, 1);
    submit(WorkPacket::kCopy, host_.data, device_.data + piece, half, 0);
    wait();
    check(host_.data, piece, half / 8, added_);
    check(window_.data, 0, window_.size / 8, added_);
    const uint64_t last = window_.size / 8 - 1;
    window_.data[last] += 5;
    submit(WorkPacket::kCopy, host_.data + half / 8, window_.data + last + 1 - 512, kPage, 0);
    wait();
    window_.data[last] -= 5;
    host_.data[half / 8 + 511] -= 5;
    check(host_.data + half / 8, last + 1 - 512, 512, added_);
    if (round % 8 == 0)
        use_old_handles();
}

void Device::use_old_handles() {
    uint32_t gpu = gpu_id_;
    kfd_ioctl_map_memory_to_gpu_args map{window_.handle, address_of(&gpu), 1, 0};
    program_->call(AMDKFD_IOC_UNMAP_MEMORY_FROM_GPU, &map);
    map.n_success = 0;
    program_->call(AMDKFD_IOC_MAP_MEMORY_TO_GPU, &map);
    void* place = reserve(kPage);
    kfd_ioctl_alloc_memory_of_gpu_args args{
        address_of(place), kPage, 0, 0, gpu_id_, KFD_IOC_ALLOC_MEM_FLAGS_VRAM | kFlags};
    program_->call(AMDKFD_IOC_ALLOC_MEMORY_OF_GPU, &args);
    kfd_ioctl_free_memory_of_gpu_args gone{args.handle};
    program_->call(AMDKFD_IOC_FREE_MEMORY_OF_GPU, &gone);
    munmap(place, kPage);
}

Program::Program(const char* prefix, int number, uint64_t device_bytes) {
    status_.pid = static_cast<uint64_t>(getpid());
    status_fd_ = open((std::string(prefix) + "-" + std::to_string(number)).c_str(),
                      O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    kfd_ = open("/dev/kfd", O_RDWR | O_CLOEXEC);
    if (status_fd_ < 0 || kfd_ < 0)
        give_up("open");
    find_gpus();
    for (const uint32_t id : gpu_ids_)
        devices_.emplace_back(this, id, device_bytes);
}

void Program::find_gpus() {
    kfd_ioctl_get_process_apertures_new_args args{};
    must(AMDKFD_IOC_GET_PROCESS_APERTURES_NEW, &args, "AMDKFD_IOC_GET_PROCESS_APERTURES_NEW");
    std::vector<kfd_process_device_apertures> all(args.num_of_nodes);
    args.kfd_process_device_apertures_ptr = address_of(all.data());
    must(AMDKFD_IOC_GET_PROCESS_APERTURES_NEW, &args, "AMDKFD_IOC_GET_PROCESS_APERTURES_NEW");
    for (const kfd_process_device_apertures& one : all)
        gpu_ids_.push_back(one.gpu_id);
}

void Program::wait_for_nothing() {
    kfd_ioctl_create_event_args event{};
    event.event_type = KFD_IOC_EVENT_SIGNAL;
    must(AMDKFD_IOC_CREATE_EVENT, &event, "AMDKFD_IOC_CREATE_EVENT");
    kfd_event_data wanted{};
    wanted.event_id = event.event_id;
    kfd_ioctl_wait_events_args args{address_of(&wanted), 1, 1, UINT32_MAX, 0};
    must(AMDKFD_IOC_WAIT_EVENTS, &args, "AMDKFD_IOC_WAIT_EVENTS");
    give_up("an event that nobody sent");
}

void Program::tell() {
    if (pwrite(status_fd_, &status_, sizeof status_, 0) != sizeof status_)
        give_up("write the state");
}

void Program::run() {
    std::thread waiter(&Program::wait_for_nothing, this);
    const timespec rest{0, 5000000};
    while (true) {
        kfd_ioctl_get_version_args version{};
        call(AMDKFD_IOC_GET_VERSION, &version);
        for (Device& device : devices_)
            device.run_round(status_.rounds);
        ++status_.rounds;
        tell();
        nanosleep(&rest, nullptr);
    }
}

}  // namespace
}  // namespace checkpointd::kfd_emulation

int main(int argc, char** argv) {
    if (argc != 4 && argc != 5)
        return 2;
    int number = 0;
    for (int i = 1; i < std::atoi(argv[2]) && number == 0; ++i)
        if (fork() == 0)
            number = i;
    checkpointd::kfd_emulation::Program program(argv[1], number,
                                                static_cast<uint64_t>(std::atoi(argv[3])) << 20);
    if (number == 0 && argc == 5 && fork() == 0)
        while (true)
            pause();
    program.run();
}
