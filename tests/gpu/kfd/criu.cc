// SPDX-License-Identifier: LGPL-2.1-or-later
//
// AMDKFD_IOC_CRIU_OP, as criu_checkpoint() and its neighbours in kfd_chardev.c,
// kfd_criu_checkpoint_queues() in kfd_process_queue_manager.c and kfd_criu_checkpoint_events() in
// kfd_events.c do it.
#include <cerrno>
#include <vector>

#include "tests/gpu/kfd/layout.h"
#include "tests/gpu/kfd/state.h"

namespace checkpointd::kfd_emulation {

namespace {

// The state of a queue's compute units: what is restored must be what was saved, bit by bit.
std::vector<uint8_t> mqd_of(const PrivateQueue& queue) {
    std::vector<uint8_t> out(kMqdSize + kCtlStackSize);
    for (size_t i = 0; i < out.size(); ++i)
        out[i] = static_cast<uint8_t>(i * 7 + queue.queue_id * 31 + queue.ring_address / 4096);
    return out;
}

// Gathers the private data; buffer objects leave a gap.
class Writer {
  public:
    template <typename T>
    void put(const T& value) {
        const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
        out_.insert(out_.end(), bytes, bytes + sizeof value);
    }
    void put_bytes(const std::vector<uint8_t>& bytes) {
        out_.insert(out_.end(), bytes.begin(), bytes.end());
    }
    void skip(size_t size) { out_.resize(out_.size() + size); }
    size_t size() const { return out_.size(); }
    const std::vector<uint8_t>& bytes() const { return out_; }

  private:
    std::vector<uint8_t> out_;
};

}  // namespace

// Private data on their way back. What goes beyond their size is EINVAL.
struct State::Reader {
    const Caller& caller;
    kfd_ioctl_criu_args& args;
    uint64_t at = 0;

    int take_bytes(void* out, uint64_t size) {
        if (at + size > args.priv_data_size)
            return -EINVAL;
        if (!caller.read(args.priv_data + at, out, size))
            return -EFAULT;
        at += size;
        return 0;
    }
    template <typename T>
    int take(T* out) {
        return take_bytes(out, sizeof *out);
    }
    ObjectType next_type(int* error) {
        ObjectType type{};
        const uint64_t before = at;
        *error = take(&type);
        at = before;
        return type;
    }
};

int State::criu(Process& process, const Caller& caller, void* data) {
    auto& args = *static_cast<kfd_ioctl_criu_args*>(data);
    switch (args.op) {
        case KFD_CRIU_OP_PROCESS_INFO:
            return criu_process_info(process, caller, args);
        case KFD_CRIU_OP_CHECKPOINT:
            return criu_checkpoint(process, caller, args);
        case KFD_CRIU_OP_UNPAUSE:
            return criu_unpause(process);
        case KFD_CRIU_OP_RESTORE:
            return criu_restore(process, caller, args);
        case KFD_CRIU_OP_RESUME:
            return criu_resume(caller, args);
        default:
            return -EINVAL;
    }
}

State::Counts State::count(const Process& process) const {
    Counts counts;
    for (const Process::Device& device : process.devices)
        for (const auto& [handle, object] : device.buffers)
            counts.bos += is_trap_handler(object) ? 0 : 1;
    counts.objects = static_cast<uint32_t>(process.queues.size() + process.events.size());
    counts.private_size = sizeof(PrivateProcess) + process.devices.size() * sizeof(PrivateDevice) +
                          counts.bos * sizeof(PrivateBuffer) +
                          process.events.size() * sizeof(PrivateEvent) +
                          process.queues.size() * (sizeof(PrivateQueue) + kMqdSize + kCtlStackSize);
    return counts;
}

// Evictions are counted (evict_process_queues_cpsch()): two of these and one UNPAUSE leave the
// queues evicted.
int State::criu_process_info(Process& process, const Caller& caller, kfd_ioctl_criu_args& args) {
    if (process.devices.empty())
        return -ENODEV;
    ++process.evicted;
    process.queues_paused = true;
    const Counts counts = count(process);
    args.pid = static_cast<uint32_t>(caller.innermost(process.pid));
    args.num_devices = static_cast<uint32_t>(process.devices.size());
    args.num_bos = counts.bos;
    args.num_objects = counts.objects;
    args.priv_data_size = counts.private_size;
    return 0;
}

int State::criu_checkpoint(Process& process, const Caller& caller, kfd_ioctl_criu_args& args) {
    if (args.devices == 0 || args.bos == 0 || args.priv_data == 0)
        return -EINVAL;
    if (process.devices.empty())
        return -ENODEV;
    const Counts counts = count(process);
    if (!process.queues_paused || args.num_devices != process.devices.size() ||
        args.num_bos != counts.bos || args.num_objects != counts.objects ||
        args.priv_data_size != counts.private_size)
        return -EINVAL;
    Writer out;
    out.put(PrivateProcess{});
    for (size_t i = 0; i < process.devices.size(); ++i)
        out.put(PrivateDevice{});
    const uint64_t buffers_at = out.size();
    out.skip(counts.bos * sizeof(PrivateBuffer));
    for (const auto& [id, queue] : process.queues) {
        out.put(queue.about);
        out.put_bytes(mqd_of(queue.about));
    }
    for (const auto& [id, event] : process.events) {
        PrivateEvent about = event.about;
        about.page_handle = id == process.events.begin()->first ? process.event_page : 0;
        out.put(about);
    }
    if (!caller.write(args.priv_data, out.bytes().data(), out.size()))
        return -EFAULT;
    if (const int error = write_devices(process, caller, args); error != 0)
        return error;
    return write_buffers(process, caller, args, args.priv_data + buffers_at);
}

int State::write_devices(const Process& process, const Caller& caller,
                         const kfd_ioctl_criu_args& args) const {
    std::vector<kfd_criu_device_bucket> buckets(process.devices.size());
    for (size_t i = 0; i < buckets.size(); ++i)
        buckets[i] = {process.devices[i].user_id, gpus_[i].id, 0, 0};
    return caller.write(args.devices, buckets.data(), buckets.size() * sizeof buckets[0]) ? 0
                                                                                          : -EFAULT;
}

// Last, because what fails after this would leave descriptors behind.
int State::write_buffers(const Process& process, const Caller& caller,
                         const kfd_ioctl_criu_args& args, uint64_t private_at) const {
    std::vector<kfd_criu_bo_bucket> buckets;
    std::vector<PrivateBuffer> privates;
    int error = 0;
    for (size_t i = 0; i < process.devices.size(); ++i) {
        for (const auto& [handle, object] : process.devices[i].buffers) {
            if (is_trap_handler(object) || error != 0)
                continue;
            kfd_criu_bo_bucket& bucket = buckets.emplace_back();
            bucket = {object.address,
                      object.size,
                      object.mmap_offset,
                      0,
                      process.devices[i].user_id,
                      object.flags,
                      KFD_INVALID_FD,
                      0};
            const bool writable = (object.flags & KFD_IOC_ALLOC_MEM_FLAGS_WRITABLE) != 0;
            error = export_buffer(object, caller, writable, &bucket);
            PrivateBuffer& about = privates.emplace_back();
            about.user_address = object.user_address;
            about.handle = handle;
            size_t next = 0;
            for (const size_t gpu : object.mapped)
                about.mapped_gpu_ids[next++] = process.devices[gpu].user_id;
        }
    }
    if (error == 0 &&
        (!caller.write(args.bos, buckets.data(), buckets.size() * sizeof(kfd_criu_bo_bucket)) ||
         !caller.write(private_at, privates.data(), privates.size() * sizeof(PrivateBuffer))))
        error = -EFAULT;
    if (error != 0)
        uninstall_all(caller, buckets);
    return error;
}

int State::export_buffer(const BufferObject& object, const Caller& caller, bool writable,
                         kfd_criu_bo_bucket* bucket) {
    bucket->dmabuf_fd = KFD_INVALID_FD;
    if (object.memory == nullptr)
        return 0;
    const int fd = caller.install(object.memory, writable);
    if (fd < 0)
        return fd;
    bucket->dmabuf_fd = static_cast<uint32_t>(fd);
    return 0;
}

void State::uninstall_all(const Caller& caller, const std::vector<kfd_criu_bo_bucket>& buckets) {
    for (const kfd_criu_bo_bucket& bucket : buckets)
        if (bucket.dmabuf_fd != KFD_INVALID_FD)
            caller.uninstall(bucket.dmabuf_fd);
}

int State::criu_unpause(Process& process) {
    if (!process.queues_paused)
        return -EINVAL;
    process.queues_paused = false;
    --process.evicted;
    return 0;
}

// What was made before a failure stays until the process ends, and its queues stay evicted.
int State::criu_restore(Process& process, const Caller& caller, kfd_ioctl_criu_args& args) {
    if ((args.num_bos > 0 && args.bos == 0) || args.devices == 0 || args.priv_data == 0 ||
        args.priv_data_size == 0 || args.num_devices == 0)
        return -EINVAL;
    ++process.evicted;
    Reader in{caller, args};
    if (const int error = restore_process(in); error != 0)
        return error;
    if (const int error = restore_devices(process, in); error != 0)
        return error;
    if (const int error = restore_buffers(process, in); error != 0)
        return error;
    if (const int error = restore_objects(process, in); error != 0)
        return error;
    return in.at == args.priv_data_size ? 0 : -EINVAL;
}

int State::restore_process(Reader& in) {
    PrivateProcess about;
    if (const int error = in.take(&about); error != 0)
        return error;
    if (about.version != kPrivateVersion)
        return -EINVAL;
    return about.xnack_mode != 0 ? -EPERM : 0;
}

int State::restore_devices(Process& process, Reader& in) {
    if (in.args.num_devices != process.devices.size())
        return -EINVAL;
    std::vector<PrivateDevice> privates(in.args.num_devices);
    if (const int error = in.take_bytes(privates.data(), privates.size() * sizeof(PrivateDevice));
        error != 0)
        return error;
    std::vector<kfd_criu_device_bucket> buckets(in.args.num_devices);
    if (!in.caller.read(in.args.devices, buckets.data(), buckets.size() * sizeof buckets[0]))
        return -EFAULT;
    for (const kfd_criu_device_bucket& bucket : buckets)
        if (const int error = restore_device(process, in.caller, bucket); error != 0)
            return error;
    return 0;
}

int State::restore_device(Process& process, const Caller& caller,
                          const kfd_criu_device_bucket& bucket) {
    size_t gpu = 0;
    while (gpu < gpus_.size() && gpus_[gpu].id != bucket.actual_gpu_id)
        ++gpu;
    if (bucket.user_gpu_id == 0 || gpu == gpus_.size())
        return -EINVAL;
    Process::Device& device = process.devices[gpu];
    device.user_id = bucket.user_gpu_id;
    const uint32_t minor = caller.render_minor(bucket.drm_fd);
    if (device.render_minor != 0 || minor != gpus_[gpu].render_minor)
        return -EINVAL;
    device.render_minor = minor;
    return 0;
}

int State::restore_buffers(Process& process, Reader& in) {
    const kfd_ioctl_criu_args& args = in.args;
    if (in.at + args.num_bos * sizeof(PrivateBuffer) > args.priv_data_size)
        return -EINVAL;
    process.mmu_blocked = true;
    std::vector<kfd_criu_bo_bucket> buckets(args.num_bos);
    if (!in.caller.read(args.bos, buckets.data(), buckets.size() * sizeof(kfd_criu_bo_bucket)))
        return -EFAULT;
    std::vector<PrivateBuffer> privates(args.num_bos);
    if (const int error = in.take_bytes(privates.data(), privates.size() * sizeof(PrivateBuffer));
        error != 0)
        return error;
    std::vector<kfd_criu_bo_bucket> done;
    int error = 0;
    for (size_t i = 0; i < buckets.size() && error == 0; ++i) {
        error = restore_buffer(process, in.caller, buckets[i], privates[i]);
        if (error == 0)
            done.push_back(buckets[i]);
    }
    if (error == 0 &&
        !in.caller.write(args.bos, buckets.data(), buckets.size() * sizeof(kfd_criu_bo_bucket)))
        error = -EFAULT;
    if (error != 0)
        uninstall_all(in.caller, done);
    return error;
}

int State::restore_buffer(Process& process, const Caller& caller, kfd_criu_bo_bucket& bucket,
                          const PrivateBuffer& about) {
    const int gpu = find_device(process, bucket.gpu_id);
    if (gpu < 0)
        return -ENODEV;
    BufferObject object;
    object.gpu = static_cast<size_t>(gpu);
    object.address = bucket.addr;
    object.size = bucket.size;
    object.flags = bucket.alloc_flags;
    object.user_address = about.user_address;
    uint32_t handle = 0;
    if (const int error = make_buffer(process, object, &about.handle, &handle); error != 0)
        return error;
    BufferObject& made = process.devices[object.gpu].buffers[handle];
    if (made.mmap_offset != 0)
        bucket.restored_offset = made.mmap_offset;
    for (size_t i = 0; i < process.devices.size() && about.mapped_gpu_ids[i] != 0; ++i) {
        const int peer = find_device(process, about.mapped_gpu_ids[i]);
        if (peer < 0)
            return -EINVAL;
        if (const int error = map_on(process, made, static_cast<size_t>(peer)); error != 0)
            return error;
    }
    return export_buffer(made, caller, true, &bucket);
}

int State::restore_objects(Process& process, Reader& in) {
    for (uint32_t i = 0; i < in.args.num_objects; ++i) {
        int error = 0;
        const ObjectType type = in.next_type(&error);
        if (error == 0 && type == ObjectType::kQueue)
            error = restore_queue(process, in);
        else if (error == 0 && type == ObjectType::kEvent)
            error = restore_event(process, in);
        else if (error == 0)
            error = -EINVAL;
        if (error != 0)
            return error;
    }
    return 0;
}

int State::restore_queue(Process& process, Reader& in) {
    Queue queue;
    if (const int error = in.take(&queue.about); error != 0)
        return error;
    std::vector<uint8_t> mqd(kMqdSize + kCtlStackSize);
    if (queue.about.mqd_size != kMqdSize || queue.about.ctl_stack_size != kCtlStackSize)
        return -EINVAL;
    if (const int error = in.take_bytes(mqd.data(), mqd.size()); error != 0)
        return error;
    const int gpu = find_device(process, queue.about.gpu_id);
    if (gpu < 0 || mqd != mqd_of(queue.about) || process.queues.count(queue.about.queue_id) != 0)
        return -EINVAL;
    queue.gpu = static_cast<size_t>(gpu);
    process.queues.emplace(queue.about.queue_id, queue);
    return 0;
}

int State::restore_event(Process& process, Reader& in) {
    Event event;
    if (const int error = in.take(&event.about); error != 0)
        return error;
    if (event.about.page_handle != 0) {
        if (process.event_page != 0 || find_buffer(process, event.about.page_handle) == nullptr)
            return -EINVAL;
        process.event_page = event.about.page_handle;
    }
    return process.events.emplace(event.about.event_id, event).second ? 0 : -EINVAL;
}

// By any process that has /dev/kfd open. In the driver the queues come back a moment after this.
int State::criu_resume(const Caller&, kfd_ioctl_criu_args& args) {
    const auto found = processes_.find(static_cast<pid_t>(args.pid));
    if (found == processes_.end())
        return -ESRCH;
    Process& target = *found->second;
    target.mmu_blocked = false;
    if (target.evicted > 0)
        --target.evicted;
    return 0;
}

}  // namespace checkpointd::kfd_emulation
