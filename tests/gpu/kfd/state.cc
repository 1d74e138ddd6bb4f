// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/gpu/kfd/state.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <thread>

#include "tests/gpu/kfd/layout.h"

namespace checkpointd::kfd_emulation {

namespace {

constexpr auto kPause = std::chrono::milliseconds(2);

// As kfd_flat_memory.c: what lies below it belongs to the driver's trap handler.
constexpr uint64_t kVramPiece = 2 << 20;  // VRAM_AVAILABLITY_ALIGN
constexpr uint64_t kGpuvmBase = 0x4000;
constexpr uint64_t kGpuvmLimit = (1ull << 47) - 1;

constexpr uint64_t in_pieces(uint64_t size) {
    return (size + kVramPiece - 1) / kVramPiece * kVramPiece;
}

template <typename T>
T& as(void* data) {
    return *static_cast<T*>(data);
}

bool overlaps(const BufferObject& a, const BufferObject& b) {
    return a.address < b.address + b.size && b.address < a.address + a.size;
}

bool is_power_of_two(uint64_t value) {
    return (value & (value - 1)) == 0;
}

}  // namespace

std::shared_ptr<Storage> Storage::make(uint64_t size) {
    ScopedFd fd(memfd_create("dmabuf", MFD_CLOEXEC));
    if (!fd || ftruncate(fd.get(), static_cast<off_t>(size)) != 0)
        return nullptr;
    void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    if (data == MAP_FAILED)
        return nullptr;
    return std::shared_ptr<Storage>(
        new Storage(std::move(fd), static_cast<std::byte*>(data), size));
}

Storage::Storage(ScopedFd fd, std::byte* data, uint64_t size)
    : fd_(std::move(fd)), data_(data), size_(size) {}

Storage::~Storage() {
    munmap(data_, size_);
}

State::State(std::vector<Gpu> gpus, Options options)
    : gpus_(std::move(gpus)), options_(std::move(options)) {
    uint16_t place = 0;  // other ones after a reboot
    if (getrandom(&place, sizeof place, 0) == sizeof place)
        next_offset_ += static_cast<uint64_t>(place) << 21;
}

int State::open(const Caller& caller, File* out) {
    bool after = false;
    if (const int error = before("open", caller, &after); error != 0 && !after)
        return -error;
    const std::lock_guard lock(mutex_);
    File& file = processes_[caller.process()];
    if (file == nullptr || file->ended) {
        file = std::make_shared<Process>(caller.process());
        for (const Gpu& gpu : gpus_)
            file->devices.push_back({gpu.id, 0, {}, 0});
    }
    *out = file;
    return 0;
}

void State::end_process(pid_t pid) {
    const std::lock_guard lock(mutex_);
    const auto found = processes_.find(pid);
    if (found == processes_.end())
        return;
    Process& process = *found->second;
    for (Process::Device& device : process.devices)
        for (auto& [handle, object] : device.buffers)
            drop_buffer(process, object);
    process.devices.clear();
    process.queues.clear();
    process.events.clear();
    process.ended = true;
    processes_.erase(found);
}

std::string State::call_name(uint32_t command, const void* data) {
    static const std::map<uint32_t, std::string> names = {
        {AMDKFD_IOC_GET_VERSION, "version"},
        {AMDKFD_IOC_GET_PROCESS_APERTURES_NEW, "apertures"},
        {AMDKFD_IOC_ACQUIRE_VM, "acquire-vm"},
        {AMDKFD_IOC_ALLOC_MEMORY_OF_GPU, "alloc"},
        {AMDKFD_IOC_FREE_MEMORY_OF_GPU, "free"},
        {AMDKFD_IOC_MAP_MEMORY_TO_GPU, "map"},
        {AMDKFD_IOC_UNMAP_MEMORY_FROM_GPU, "unmap"},
        {AMDKFD_IOC_AVAILABLE_MEMORY, "available"},
        {AMDKFD_IOC_CREATE_QUEUE, "create-queue"},
        {AMDKFD_IOC_DESTROY_QUEUE, "destroy-queue"},
        {AMDKFD_IOC_CREATE_EVENT, "create-event"},
        {AMDKFD_IOC_DESTROY_EVENT, "destroy-event"},
        {AMDKFD_IOC_SET_EVENT, "set-event"},
        {AMDKFD_IOC_RESET_EVENT, "reset-event"},
        {AMDKFD_IOC_WAIT_EVENTS, "wait-events"},
    };
    static const std::vector<std::string> operations = {"process-info", "checkpoint", "unpause",
                                                        "restore", "resume"};
    if (command == AMDKFD_IOC_CRIU_OP) {
        const uint32_t operation = static_cast<const kfd_ioctl_criu_args*>(data)->op;
        return operation < operations.size() ? operations[operation] : "criu";
    }
    const auto found = names.find(command);
    return found == names.end() ? "ioctl" : found->second;
}

const std::map<uint32_t, State::Call>& State::calls() {
    static const std::map<uint32_t, Call> table = {
        {AMDKFD_IOC_GET_VERSION, &State::get_version},
        {AMDKFD_IOC_GET_PROCESS_APERTURES_NEW, &State::get_apertures},
        {AMDKFD_IOC_ACQUIRE_VM, &State::acquire_vm},
        {AMDKFD_IOC_ALLOC_MEMORY_OF_GPU, &State::alloc_memory},
        {AMDKFD_IOC_FREE_MEMORY_OF_GPU, &State::free_memory},
        {AMDKFD_IOC_MAP_MEMORY_TO_GPU, &State::map_memory},
        {AMDKFD_IOC_UNMAP_MEMORY_FROM_GPU, &State::unmap_memory},
        {AMDKFD_IOC_AVAILABLE_MEMORY, &State::available_memory},
        {AMDKFD_IOC_CREATE_QUEUE, &State::create_queue},
        {AMDKFD_IOC_DESTROY_QUEUE, &State::destroy_queue},
        {AMDKFD_IOC_CREATE_EVENT, &State::create_event},
        {AMDKFD_IOC_DESTROY_EVENT, &State::destroy_event},
        {AMDKFD_IOC_SET_EVENT, &State::set_event},
        {AMDKFD_IOC_RESET_EVENT, &State::reset_event},
        {AMDKFD_IOC_CRIU_OP, &State::criu},
    };
    return table;
}

// kfd_ioctl() of kfd_chardev.c: only who opened the file may use it; for the checkpoint operations
// also the very thread that traces it, and these need a capability.
int State::ioctl(const File& file, const Caller& caller, uint32_t command, void* data) {
    if (_IOC_TYPE(command) != AMDKFD_IOCTL_BASE || _IOC_NR(command) >= 0x27)
        return -ENOTTY;
    const bool criu = command == AMDKFD_IOC_CRIU_OP;
    const bool traces = criu && !file->ended && caller.tracer_of(file->pid) == caller.thread();
    if (file->ended || (caller.process() != file->pid && !traces))
        return -EBADF;
    if (criu && !caller.is_capable())
        return -EACCES;
    bool after = false;
    const int error = before(call_name(command, data), caller, &after);
    if (error != 0 && !after)
        return -error;
    const int answer = run_call(*file, caller, command, data);
    return error != 0 ? -error : answer;
}

int State::run_call(Process& process, const Caller& caller, uint32_t command, void* data) {
    if (command == AMDKFD_IOC_WAIT_EVENTS)
        return wait_events(process, caller, data);
    const auto call = calls().find(command);
    if (call == calls().end())  // shared virtual memory is not configured
        return _IOC_NR(command) == 0x20 || _IOC_NR(command) == 0x21 ? -EPERM : -EINVAL;
    if (command == AMDKFD_IOC_CRIU_OP && options_.flush)
        for (const Gpu& gpu : gpus_)
            options_.flush(gpu.render_minor);
    const std::lock_guard lock(mutex_);
    return process.ended ? -EBADF : (this->*call->second)(process, caller, data);
}

// Faults

void State::set_faults(std::vector<Fault> faults) {
    const std::lock_guard lock(mutex_);
    faults_ = std::move(faults);
    ++faults_version_;
}

Fault* State::find_fault(const std::string& name) {
    for (Fault& fault : faults_)
        if (fault.call == name && (++fault.seen == fault.nth || fault.nth == 0))
            return &fault;
    return nullptr;
}

// The error that the call is to end with, 0: none. *after: it is done nevertheless.
int State::before(const std::string& name, const Caller& caller, bool* after) {
    std::unique_lock lock(mutex_);
    const Fault* found = find_fault(name);
    if (found == nullptr)
        return 0;
    const Fault fault = *found;
    const unsigned version = faults_version_;
    lock.unlock();
    *after = fault.kind == Fault::Kind::kFailAfter;
    if (fault.kind == Fault::Kind::kDelay)
        std::this_thread::sleep_for(std::chrono::milliseconds(fault.value));
    while (fault.kind == Fault::Kind::kHang && version == faults_version_ &&
           !caller.is_interrupted())
        std::this_thread::sleep_for(kPause);
    return fault.kind == Fault::Kind::kFail || *after ? fault.value : 0;
}

int State::fault_of_copy(const std::string& name) {
    std::unique_lock lock(mutex_);
    const Fault* found = find_fault(name);
    if (found == nullptr)
        return 0;
    const Fault fault = *found;
    lock.unlock();
    if (fault.kind == Fault::Kind::kDelay)
        std::this_thread::sleep_for(std::chrono::milliseconds(fault.value));
    return fault.kind == Fault::Kind::kFail ? fault.value : 0;
}

// Devices

int State::find_device(const Process& process, uint32_t user_id) const {
    for (size_t i = 0; i < process.devices.size(); ++i)
        if (process.devices[i].user_id == user_id)
            return static_cast<int>(i);
    return -1;
}

int State::get_version(Process&, const Caller&, void* data) {
    as<kfd_ioctl_get_version_args>(data) = {KFD_IOCTL_MAJOR_VERSION, options_.minor_version};
    return 0;
}

int State::get_apertures(Process& process, const Caller& caller, void* data) {
    auto& args = as<kfd_ioctl_get_process_apertures_new_args>(data);
    const auto count = static_cast<uint32_t>(process.devices.size());
    if (args.num_of_nodes == 0) {
        args.num_of_nodes = count;
        return 0;
    }
    std::vector<kfd_process_device_apertures> all(std::min(args.num_of_nodes, count));
    for (size_t i = 0; i < all.size(); ++i) {
        all[i].gpuvm_base = kGpuvmBase;
        all[i].gpuvm_limit = kGpuvmLimit;
        all[i].gpu_id = process.devices[i].user_id;
    }
    args.num_of_nodes = static_cast<uint32_t>(all.size());
    return caller.write(args.kfd_process_device_apertures_ptr, all.data(),
                        all.size() * sizeof all[0])
               ? 0
               : -EFAULT;
}

int State::acquire_vm(Process& process, const Caller& caller, void* data) {
    const auto& args = as<kfd_ioctl_acquire_vm_args>(data);
    const uint32_t minor = caller.render_minor(args.drm_fd);
    if (minor == 0)
        return -EINVAL;
    const int gpu = find_device(process, args.gpu_id);
    if (gpu < 0)
        return -EINVAL;
    Process::Device& device = process.devices[static_cast<size_t>(gpu)];
    if (device.render_minor != 0)
        return -EBUSY;
    if (minor != gpus_[static_cast<size_t>(gpu)].render_minor)
        return -EINVAL;
    device.render_minor = minor;
    return 0;
}

int State::available_memory(Process& process, const Caller&, void* data) {
    auto& args = as<kfd_ioctl_get_available_memory_args>(data);
    const int gpu = find_device(process, args.gpu_id);
    if (gpu < 0 || options_.minor_version < 9)
        return -EINVAL;
    args.available = available_vram(static_cast<size_t>(gpu));
    return 0;
}

// What is told is less than what can be had: amdgpu_amdkfd_get_available_memory() counts every
// buffer in whole pieces, amdgpu_amdkfd_reserve_mem_limit() in bytes.
uint64_t State::available_vram(size_t gpu) const {
    uint64_t used = 0;
    for (const auto& [pid, process] : processes_)
        used += process->devices[gpu].vram_used_aligned;
    const uint64_t left = gpus_[gpu].vram_bytes - std::min(used, gpus_[gpu].vram_bytes);
    return left / kVramPiece * kVramPiece;
}

uint64_t State::free_vram(size_t gpu) const {
    uint64_t used = 0;
    for (const auto& [pid, process] : processes_)
        used += process->devices[gpu].vram_used;
    return gpus_[gpu].vram_bytes - std::min(used, gpus_[gpu].vram_bytes);
}

// Memory

uint64_t State::special_offset(const BufferObject& object) const {
    const uint64_t gpu = static_cast<uint64_t>(gpus_[object.gpu].id) << kMmapGpuShift;
    if ((object.flags & KFD_IOC_ALLOC_MEM_FLAGS_DOORBELL) != 0)
        return (kMmapTypeDoorbell << options_.mmap_type_shift) | gpu;
    if ((object.flags & KFD_IOC_ALLOC_MEM_FLAGS_MMIO_REMAP) != 0)
        return gpu;  // KFD_MMAP_TYPE_MMIO is 0
    return 0;
}

bool State::is_trap_handler(const BufferObject& object) {
    return object.address != 0 && object.address <= kGpuvmBase;
}

// What alloc and restore have in common: sizes, room, a place to map it from.
int State::make_buffer(Process& process, BufferObject object, const uint32_t* forced_handle,
                       uint32_t* handle) {
    Process::Device& device = process.devices[object.gpu];
    if (device.render_minor == 0)
        return -ENODEV;
    if ((object.flags & KFD_IOC_ALLOC_MEM_FLAGS_DOORBELL) != 0 && object.size != kDoorbellSlice)
        return -EINVAL;
    if ((object.flags & KFD_IOC_ALLOC_MEM_FLAGS_MMIO_REMAP) != 0 && object.size != kPage)
        return -EINVAL;
    const bool vram = (object.flags & KFD_IOC_ALLOC_MEM_FLAGS_VRAM) != 0;
    if (vram && object.size > free_vram(object.gpu))
        return -ENOMEM;
    object.handle = forced_handle != nullptr ? *forced_handle : next_handle(device);
    if (device.buffers.count(object.handle) != 0)
        return -ENOMEM;
    if (has_storage(object.flags) && (object.memory = Storage::make(object.size)) == nullptr)
        return -ENOMEM;
    object.mmap_offset = special_offset(object);
    if (object.memory != nullptr)
        add_mapping(&object);
    if (vram) {
        device.vram_used += object.size;
        device.vram_used_aligned += in_pieces(object.size);
    }
    *handle = object.handle;
    device.buffers.emplace(object.handle, std::move(object));
    return 0;
}

uint32_t State::next_handle(const Process::Device& device) {
    uint32_t handle = 1;  // the lowest, as of an IDR
    while (device.buffers.count(handle) != 0)
        ++handle;
    return handle;
}

bool State::can_be_mapped(const BufferObject& object) {
    return (object.flags & (KFD_IOC_ALLOC_MEM_FLAGS_GTT | KFD_IOC_ALLOC_MEM_FLAGS_PUBLIC)) != 0;
}

// VRAM that is not public has an offset as well, but nothing can be reached there.
void State::add_mapping(BufferObject* object) {
    object->mmap_offset = next_offset_;
    next_offset_ += (object->size + kPage - 1) / kPage * kPage + kPage;
    if (!can_be_mapped(*object))
        return;
    const std::lock_guard lock(mappings_mutex_);
    mappings_[gpus_[object->gpu].render_minor][object->mmap_offset] = object->memory;
}

void State::drop_buffer(Process& process, BufferObject& object) {
    if ((object.flags & KFD_IOC_ALLOC_MEM_FLAGS_VRAM) != 0) {
        process.devices[object.gpu].vram_used -= object.size;
        process.devices[object.gpu].vram_used_aligned -= in_pieces(object.size);
    }
    const std::lock_guard lock(mappings_mutex_);
    mappings_[gpus_[object.gpu].render_minor].erase(object.mmap_offset);
}

std::shared_ptr<Storage> State::find_mapping(uint32_t render_minor, uint64_t offset,
                                             uint64_t* into) const {
    const std::lock_guard lock(mappings_mutex_);
    const auto device = mappings_.find(render_minor);
    if (device == mappings_.end())
        return nullptr;
    auto next = device->second.upper_bound(offset);
    if (next == device->second.begin())
        return nullptr;
    --next;
    *into = offset - next->first;
    return *into < next->second->size() ? next->second : nullptr;
}

int State::alloc_memory(Process& process, const Caller&, void* data) {
    auto& args = as<kfd_ioctl_alloc_memory_of_gpu_args>(data);
    const int gpu = find_device(process, args.gpu_id);
    if (args.size == 0 || gpu < 0)
        return -EINVAL;
    BufferObject object;
    object.gpu = static_cast<size_t>(gpu);
    object.address = args.va_addr;
    object.size = args.size;
    object.flags = args.flags;
    if ((args.flags & KFD_IOC_ALLOC_MEM_FLAGS_USERPTR) != 0)
        object.user_address = args.mmap_offset;
    uint32_t handle = 0;
    if (const int error = make_buffer(process, object, nullptr, &handle); error != 0)
        return error;
    args.handle = make_handle(args.gpu_id, handle);
    args.mmap_offset = process.devices[object.gpu].buffers[handle].mmap_offset;
    return 0;
}

BufferObject* State::find_buffer(Process& process, uint64_t handle) {
    const int gpu = find_device(process, gpu_of_handle(handle));
    if (gpu < 0)
        return nullptr;
    auto& buffers = process.devices[static_cast<size_t>(gpu)].buffers;
    const auto found = buffers.find(static_cast<uint32_t>(handle));
    return found == buffers.end() ? nullptr : &found->second;
}

int State::free_memory(Process& process, const Caller&, void* data) {
    const auto& args = as<kfd_ioctl_free_memory_of_gpu_args>(data);
    if (args.handle == process.event_page && args.handle != 0)
        return -EPERM;
    BufferObject* object = find_buffer(process, args.handle);
    if (object == nullptr)
        return -EINVAL;
    if (!object->mapped.empty())
        return -EBUSY;
    drop_buffer(process, *object);
    process.devices[object->gpu].buffers.erase(static_cast<uint32_t>(args.handle));
    return 0;
}

int State::map_memory(Process& process, const Caller& caller, void* data) {
    return map_or_unmap(process, caller, data, true);
}

int State::unmap_memory(Process& process, const Caller& caller, void* data) {
    return map_or_unmap(process, caller, data, false);
}

int State::map_on(Process& process, BufferObject& object, size_t gpu) {
    if (process.devices[gpu].render_minor == 0)
        return -ENODEV;
    for (Process::Device& device : process.devices)
        for (auto& [handle, other] : device.buffers)
            if (&other != &object && other.mapped.count(gpu) != 0 && overlaps(object, other))
                return -EINVAL;
    object.mapped.insert(gpu);
    return 0;
}

int State::map_or_unmap(Process& process, const Caller& caller, void* data, bool map) {
    auto& args = as<kfd_ioctl_map_memory_to_gpu_args>(data);
    if (args.n_devices == 0 || args.n_success > args.n_devices)
        return -EINVAL;
    std::vector<uint32_t> ids(args.n_devices);
    if (!caller.read(args.device_ids_array_ptr, ids.data(), ids.size() * sizeof ids[0]))
        return -EFAULT;
    BufferObject* object = find_buffer(process, args.handle);
    if (object == nullptr)
        return find_device(process, gpu_of_handle(args.handle)) < 0 ? -EINVAL : -ENOMEM;
    for (; args.n_success < args.n_devices; ++args.n_success) {
        const int gpu = find_device(process, ids[args.n_success]);
        if (gpu < 0)
            return -EINVAL;
        if (!map)
            object->mapped.erase(static_cast<size_t>(gpu));
        else if (const int error = map_on(process, *object, static_cast<size_t>(gpu)); error != 0)
            return error;
    }
    return 0;
}

// Queues and events

int State::create_queue(Process& process, const Caller&, void* data) {
    auto& args = as<kfd_ioctl_create_queue_args>(data);
    if (args.queue_percentage > KFD_MAX_QUEUE_PERCENTAGE ||
        args.queue_priority > KFD_MAX_QUEUE_PRIORITY || !is_power_of_two(args.ring_size) ||
        args.queue_type > KFD_IOC_QUEUE_TYPE_SDMA_XGMI)
        return -EINVAL;
    const int gpu = find_device(process, args.gpu_id);
    if (gpu < 0)
        return -EINVAL;
    if (process.devices[static_cast<size_t>(gpu)].render_minor == 0)
        return -ESRCH;
    uint32_t id = 0;
    while (process.queues.count(id) != 0)
        ++id;
    Queue queue;
    queue.gpu = static_cast<size_t>(gpu);
    queue.about = {ObjectType::kQueue,
                   args.ring_base_address,
                   args.ring_size,
                   args.read_pointer_address,
                   args.write_pointer_address,
                   0,
                   args.gpu_id,
                   args.queue_type,
                   id,
                   args.queue_priority,
                   args.queue_percentage,
                   kCtlStackSize,
                   kMqdSize};
    BufferObject doorbell;
    doorbell.gpu = queue.gpu;
    doorbell.flags = KFD_IOC_ALLOC_MEM_FLAGS_DOORBELL;
    queue.about.doorbell_offset = special_offset(doorbell) | (id * 8);
    args.queue_id = id;
    args.doorbell_offset = queue.about.doorbell_offset;
    process.queues.emplace(id, queue);
    return 0;
}

int State::destroy_queue(Process& process, const Caller&, void* data) {
    return process.queues.erase(as<kfd_ioctl_destroy_queue_args>(data).queue_id) == 1 ? 0 : -EINVAL;
}

int State::create_event(Process& process, const Caller&, void* data) {
    auto& args = as<kfd_ioctl_create_event_args>(data);
    if (args.event_page_offset != 0) {
        if (process.event_page != 0 || find_buffer(process, args.event_page_offset) == nullptr)
            return -EINVAL;
        process.event_page = args.event_page_offset;
    }
    if (process.events.size() >= KFD_SIGNAL_EVENT_LIMIT)
        return -ENOSPC;
    uint32_t id = 1;
    while (process.events.count(id) != 0)
        ++id;
    Event event;
    event.about.event_id = id;
    event.about.auto_reset = args.auto_reset != 0 ? 1 : 0;
    event.about.type = args.event_type;
    process.events.emplace(id, event);
    args.event_id = args.event_trigger_data = args.event_slot_index = id;
    return 0;
}

int State::destroy_event(Process& process, const Caller&, void* data) {
    return process.events.erase(as<kfd_ioctl_destroy_event_args>(data).event_id) == 1 ? 0 : -EINVAL;
}

int State::set_event(Process& process, const Caller&, void* data) {
    const auto found = process.events.find(as<kfd_ioctl_set_event_args>(data).event_id);
    if (found == process.events.end())
        return -EINVAL;
    found->second.about.signalled = 1;
    return 0;
}

int State::reset_event(Process& process, const Caller&, void* data) {
    const auto found = process.events.find(as<kfd_ioctl_reset_event_args>(data).event_id);
    if (found == process.events.end())
        return -EINVAL;
    found->second.about.signalled = 0;
    return 0;
}

// What kfd_wait_on_events() finds now: 1 complete, 0 not yet, or -errno.
int State::look_at_events(Process& process, const std::vector<kfd_event_data>& wanted, bool all) {
    const std::lock_guard lock(mutex_);
    size_t set = 0;
    for (const kfd_event_data& one : wanted) {
        const auto found = process.events.find(one.event_id);
        if (found == process.events.end())
            return process.ended ? -EBADF : -EINVAL;
        set += found->second.about.signalled;
    }
    if (wanted.empty() || set < (all ? wanted.size() : 1))
        return 0;
    for (const kfd_event_data& one : wanted) {
        PrivateEvent& event = process.events[one.event_id].about;
        event.signalled = event.auto_reset != 0 ? 0 : event.signalled;
    }
    return 1;
}

// The driver answers a signal by ERESTARTSYS, which nobody but the kernel can.
int State::wait_events(Process& process, const Caller& caller, void* data) {
    auto& args = as<kfd_ioctl_wait_events_args>(data);
    if (args.num_events > KFD_SIGNAL_EVENT_LIMIT)
        return -EINVAL;
    std::vector<kfd_event_data> wanted(args.num_events);
    if (!caller.read(args.events_ptr, wanted.data(), wanted.size() * sizeof wanted[0]))
        return -EFAULT;
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(args.timeout);
    args.wait_result = KFD_IOC_WAIT_RESULT_TIMEOUT;
    while (true) {
        const int found = look_at_events(process, wanted, args.wait_for_all != 0);
        if (found < 0)
            return found;
        if (found > 0) {
            args.wait_result = KFD_IOC_WAIT_RESULT_COMPLETE;
            return 0;
        }
        if (args.timeout != UINT32_MAX && std::chrono::steady_clock::now() >= end)
            return 0;
        if (caller.is_interrupted())
            return -EINTR;
        std::this_thread::sleep_for(kPause);
    }
}

// For tests

std::vector<Process> State::processes() const {
    const std::lock_guard lock(mutex_);
    std::vector<Process> all;
    for (const auto& [pid, process] : processes_)
        all.push_back(*process);
    return all;
}

std::string State::describe() const {
    std::string out;
    for (const Process& process : processes())
        describe_process(process, &out);
    return out;
}

void State::describe_process(const Process& process, std::string* out) const {
    const auto add = [&](const std::string& line) { *out += line + "\n"; };
    add(fmt::format("process {} evicted={} paused={:d} blocked={:d}", process.pid, process.evicted,
                    process.queues_paused, process.mmu_blocked));
    for (size_t i = 0; i < process.devices.size(); ++i) {
        const Process::Device& device = process.devices[i];
        add(fmt::format("device {} gpu={} user={} vm={} vram={}", process.pid, gpus_[i].id,
                        device.user_id, device.render_minor, device.vram_used));
        for (const auto& [handle, object] : device.buffers) {
            std::vector<uint32_t> mapped;
            for (const size_t gpu : object.mapped)
                mapped.push_back(gpus_[gpu].id);
            add(
                fmt::format("buffer {} gpu={} handle={} address={:#x} size={} flags={:#x} "
                            "offset={:#x} mapped={}",
                            process.pid, gpus_[i].id, handle, object.address, object.size,
                            object.flags, object.mmap_offset, fmt::join(mapped, ",")));
        }
    }
    for (const auto& [id, queue] : process.queues)
        add(fmt::format("queue {} gpu={} id={} done={} failed={}", process.pid, gpus_[queue.gpu].id,
                        id, queue.packets_done, queue.packets_failed));
    for (const auto& [id, event] : process.events)
        add(fmt::format("event {} id={} type={} signalled={}", process.pid, id, event.about.type,
                        event.about.signalled));
}

}  // namespace checkpointd::kfd_emulation
