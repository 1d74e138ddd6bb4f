// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What the AMDGPU driver (drivers/gpu/drm/amd/amdkfd/kfd_chardev.c and kfd_process.c of Linux 6.x)
// does with calls on /dev/kfd, without a device: processes, their buffer objects, queues and
// events, and the operations for a checkpoint with the driver's exact counts, errors and rules.
// README.md says what is not as in the driver.
#pragma once

#include <linux/kfd_ioctl.h>
#include <sys/types.h>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "core/base/scoped_fd.h"
#include "tests/gpu/kfd/private_data.h"

namespace checkpointd::kfd_emulation {

struct Gpu {
    uint32_t id = 0;  // not 0
    uint32_t render_minor = 128;
    uint64_t vram_bytes = 1ull << 30;
};

// The memory of a buffer object. A dma-buf keeps it when its process is gone.
class Storage {
  public:
    // Null where there is no memory.
    static std::shared_ptr<Storage> make(uint64_t size);
    Storage(const Storage&) = delete;
    Storage& operator=(const Storage&) = delete;
    ~Storage();

    int fd() const { return fd_.get(); }  // a memfd
    std::byte* data() const { return data_; }
    uint64_t size() const { return size_; }

  private:
    Storage(ScopedFd fd, std::byte* data, uint64_t size);
    ScopedFd fd_;
    std::byte* data_;
    uint64_t size_;
};

// Who makes a call, and what of the kernel the driver needs to serve it. Borrowed for the call.
class Caller {
  public:
    virtual ~Caller() = default;
    virtual pid_t thread() const = 0;
    virtual pid_t process() const = 0;
    // The thread that traces the first thread of a process; 0: none.
    virtual pid_t tracer_of(pid_t process) const = 0;
    // The number that a process has in its own PID namespace.
    virtual pid_t innermost(pid_t process) const = 0;
    // CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN.
    virtual bool is_capable() const = 0;
    virtual bool read(uint64_t address, void* data, size_t size) const = 0;
    virtual bool write(uint64_t address, const void* data, size_t size) const = 0;
    // The minor number of the render node behind one of its descriptors; 0: it is none.
    virtual uint32_t render_minor(uint32_t fd) const = 0;
    // Gives it a descriptor of a dma-buf, or -errno; and takes it back.
    virtual int install(const std::shared_ptr<Storage>& storage, bool writable) const = 0;
    virtual void uninstall(uint32_t fd) const = 0;
    // Nobody waits for the call any more.
    virtual bool is_interrupted() const { return false; }
};

struct BufferObject {
    uint32_t handle = 0;  // unique on its GPU
    size_t gpu = 0;       // index of State::gpus()
    uint64_t address = 0;
    uint64_t size = 0;
    uint64_t mmap_offset =
        0;  // of the render node, or a code of the driver's for doorbells and MMIO
    uint64_t user_address = 0;
    uint32_t flags = 0;               // KFD_IOC_ALLOC_MEM_FLAGS_...
    std::set<size_t> mapped;          // GPUs that can reach it
    std::shared_ptr<Storage> memory;  // of VRAM and GTT
};

struct Queue {
    PrivateQueue about;
    size_t gpu = 0;
    uint64_t packets_done = 0;
    uint64_t packets_failed = 0;  // page faults of the device
};

struct Event {
    PrivateEvent about;
};

// A process as the driver knows it: from its first open("/dev/kfd") to its end.
struct Process {
    explicit Process(pid_t id) : pid(id) {}

    struct Device {
        uint32_t user_id = 0;       // the GPU's id where the program was first started
        uint32_t render_minor = 0;  // of the VM that it has; 0: none yet
        std::map<uint32_t, BufferObject> buffers;
        uint64_t vram_used = 0;
        uint64_t vram_used_aligned = 0;  // each buffer in whole pieces of 2 MiB
    };

    const pid_t pid;
    bool ended = false;
    std::vector<Device> devices;  // one for each GPU, used or not
    std::map<uint32_t, Queue> queues;
    std::map<uint32_t, Event> events;
    uint64_t event_page = 0;  // handle
    unsigned evicted = 0;     // counts, as in the driver: queues run when it is 0
    bool queues_paused = false;
    bool mmu_blocked = false;  // notifications, from RESTORE to RESUME
};

// One packet in the ring of an emulated queue, which the device takes when *write_pointer is behind
// it. Addresses are the GPU's. Not AMD's format: what programs compute is not emulated, that they
// compute is.
struct WorkPacket {
    enum Operation : uint32_t { kAdd = 1, kCopy = 2 };
    uint32_t operation = kAdd;
    uint32_t event_id = 0;  // signalled afterwards; 0: none
    uint64_t destination = 0;
    uint64_t source = 0;  // of kCopy
    uint64_t size = 0;    // bytes, a multiple of 8
    uint64_t value = 0;   // of kAdd, to each of the 64 bit numbers
    uint64_t reserved[3] = {};
};
static_assert(sizeof(WorkPacket) == 64);

// Something that goes wrong. `call`: a name of State::call_name(), "copy-from" or "copy-to" (the
// contents of dma-bufs).
struct Fault {
    enum class Kind { kFail, kFailAfter, kDelay, kHang };  // kFailAfter: it is done nevertheless
    std::string call;
    unsigned nth = 1;  // which of the calls from now on; 0: each
    Kind kind = Kind::kFail;
    int value =
        0;  // errno, or milliseconds; a hang ends with the fault, or when nobody waits any more
    unsigned seen = 0;
};

class State {
  public:
    struct Options {
        uint32_t minor_version = KFD_IOCTL_MINOR_VERSION;
        // Of the type in an mmap offset of /dev/kfd. 62 in the driver.
        unsigned mmap_type_shift = 62;
        // Where programs map buffer objects through something that keeps copies of them (a file
        // system): brings what they wrote into the memory, before it is exported; and the device's
        // own way to what can be mapped. May not call back.
        std::function<void(uint32_t render_minor)> flush;
        std::function<bool(uint32_t render_minor, uint64_t offset, void* data, size_t size,
                           bool write)>
            access_mapped;
        // The memory of a process, for the packets in its queues.
        std::function<bool(pid_t process, uint64_t address, void* data, size_t size)> read_memory;
        std::function<bool(pid_t process, uint64_t address, const void* data, size_t size)>
            write_memory;
    };

    using File = std::shared_ptr<Process>;  // an open /dev/kfd

    State(std::vector<Gpu> gpus, Options options);

    const std::vector<Gpu>& gpus() const { return gpus_; }

    // open("/dev/kfd"): 0, or -errno.
    int open(const Caller& caller, File* out);
    // `data` holds _IOC_SIZE(command) bytes, and what comes back. 0, or -errno.
    int ioctl(const File& file, const Caller& caller, uint32_t command, void* data);
    // The process is gone, or has another program: what it had is let go. Dma-bufs live on.
    void end_process(pid_t process);

    // What lies at an offset of a render node: a piece of one buffer object, or nothing (null). Any
    // thread, also while another call is under way.
    std::shared_ptr<Storage> find_mapping(uint32_t render_minor, uint64_t offset,
                                          uint64_t* into) const;

    // Lets the queues that are not evicted run: one packet of each. How many were executed.
    size_t run_queues();

    void set_faults(std::vector<Fault> faults);
    // The error of a fault on a copy ("copy-from", "copy-to"); 0: none.
    int fault_of_copy(const std::string& name);

    // For tests: a copy of what is known of each process.
    std::vector<Process> processes() const;
    // One line for each process, device, buffer object, queue and event.
    std::string describe() const;

    static std::string call_name(uint32_t command, const void* data);

  private:
    using Call = int (State::*)(Process&, const Caller&, void*);
    struct Reader;
    struct Counts {
        uint32_t bos = 0;
        uint32_t objects = 0;
        uint64_t private_size = 0;
    };

    static const std::map<uint32_t, Call>& calls();
    int run_call(Process& process, const Caller& caller, uint32_t command, void* data);
    int before(const std::string& name, const Caller& caller, bool* after);
    Fault* find_fault(const std::string& name);

    int get_version(Process&, const Caller&, void* data);
    int get_apertures(Process& process, const Caller& caller, void* data);
    int acquire_vm(Process& process, const Caller& caller, void* data);
    int alloc_memory(Process& process, const Caller&, void* data);
    int free_memory(Process& process, const Caller&, void* data);
    int map_memory(Process& process, const Caller& caller, void* data);
    int unmap_memory(Process& process, const Caller& caller, void* data);
    int available_memory(Process& process, const Caller&, void* data);
    int create_queue(Process& process, const Caller&, void* data);
    int destroy_queue(Process& process, const Caller&, void* data);
    int create_event(Process& process, const Caller&, void* data);
    int destroy_event(Process& process, const Caller&, void* data);
    int set_event(Process& process, const Caller&, void* data);
    int reset_event(Process& process, const Caller&, void* data);
    int wait_events(Process& process, const Caller& caller, void* data);
    int criu(Process& process, const Caller& caller, void* data);

    int criu_process_info(Process& process, const Caller& caller, kfd_ioctl_criu_args& args);
    int criu_checkpoint(Process& process, const Caller& caller, kfd_ioctl_criu_args& args);
    int criu_unpause(Process& process);
    int criu_restore(Process& process, const Caller& caller, kfd_ioctl_criu_args& args);
    int criu_resume(const Caller& caller, kfd_ioctl_criu_args& args);
    int write_devices(const Process& process, const Caller& caller,
                      const kfd_ioctl_criu_args& args) const;
    int write_buffers(const Process& process, const Caller& caller, const kfd_ioctl_criu_args& args,
                      uint64_t private_at) const;
    static int export_buffer(const BufferObject& object, const Caller& caller, bool writable,
                             kfd_criu_bo_bucket* bucket);
    static void uninstall_all(const Caller& caller, const std::vector<kfd_criu_bo_bucket>& buckets);
    int restore_device(Process& process, const Caller& caller,
                       const kfd_criu_device_bucket& bucket);
    int restore_process(Reader& in);
    int restore_devices(Process& process, Reader& in);
    int restore_buffers(Process& process, Reader& in);
    int restore_buffer(Process& process, const Caller& caller, kfd_criu_bo_bucket& bucket,
                       const PrivateBuffer& about);
    int restore_objects(Process& process, Reader& in);
    int restore_queue(Process& process, Reader& in);
    int restore_event(Process& process, Reader& in);

    int map_or_unmap(Process& process, const Caller& caller, void* data, bool map);
    int map_on(Process& process, BufferObject& object, size_t gpu);
    int make_buffer(Process& process, BufferObject object, const uint32_t* forced_handle,
                    uint32_t* handle);
    static uint32_t next_handle(const Process::Device& device);
    void add_mapping(BufferObject* object);
    void drop_buffer(Process& process, BufferObject& object);
    BufferObject* find_buffer(Process& process, uint64_t handle);
    uint64_t free_vram(size_t gpu) const;
    uint64_t available_vram(size_t gpu) const;
    int look_at_events(Process& process, const std::vector<kfd_event_data>& wanted, bool all);
    void describe_process(const Process& process, std::string* out) const;
    int find_device(const Process& process, uint32_t user_id) const;  // index, or -1
    Counts count(const Process& process) const;
    uint64_t special_offset(const BufferObject& object) const;  // 0: it has a place of its own
    static bool can_be_mapped(const BufferObject& object);
    static bool is_trap_handler(const BufferObject& object);

    bool run_packet(Process& process, Queue& queue);
    bool execute(Process& process, const Queue& queue, const WorkPacket& packet);
    bool access(Process& process, size_t gpu, uint64_t address, void* data, uint64_t size,
                bool write);
    BufferObject* find_address(Process& process, size_t gpu, uint64_t address, uint64_t size);

    const std::vector<Gpu> gpus_;
    const Options options_;
    mutable std::mutex mutex_;
    std::map<pid_t, File> processes_;
    std::vector<Fault> faults_;
    std::atomic<unsigned> faults_version_ = 0;
    uint64_t next_offset_ = 0x100000000;  // DRM_FILE_PAGE_OFFSET_START
    // Offsets of render nodes; a lock of its own, so that programs' page faults are served while a
    // call is.
    mutable std::mutex mappings_mutex_;
    std::map<uint32_t, std::map<uint64_t, std::shared_ptr<Storage>>> mappings_;
};

}  // namespace checkpointd::kfd_emulation
