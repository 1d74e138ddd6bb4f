/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An emulation of NVIDIA's libcuda.so.1, as far as programs in the tests and the CUDA plugin use it. It is on both
 * sides, as the real one is: in programs that compute, and in whoever checkpoints them.
 *
 * Device memory of process PID on a device is the file /dev/nvidia-memory/PID-UUID, so it is outside of the program, and the program
 * holds descriptors below /dev/nvidia*, which nobody can carry. The driver's state of a process is in its own memory
 * (fake_cuda_process), so that it is where the process is, also after a restore; who checkpoints it finds it through
 * /proc/PID/maps. A thread of the process does the work of a checkpoint, of a restore and of the unlock: while it stands
 * still, these calls hang, as with the real driver (of the unlock nobody knows).
 *
 * Storage of the caller's, since 13.4: the memory of the process's device is mapped where the checkpoint is made, under an
 * address that only the copies here understand, and these are made when somebody waits for them. Until the operation is
 * completed, which takes the thread of the process too, the process has its device. The memory that a restore hands
 * out holds no zeros and nothing of what it held.
 *
 * Faults: /dev/nvidia-memory/.faults has lines "CALL delay MS", "CALL fail CODE", "CALL fail-after CODE" (it was done
 * nevertheless), "CALL fail-once CODE" (and no fault is left), "CALL hang" (as long as the line is there, and so long there is
 * /dev/nvidia-memory/.in-CALL), "lock busy MS" (work in flight goes on for so long); CALL is init, thread (which one it is),
 * state-locked and so on (asking for the state of who is), lock, checkpoint, restore, unlock, map, describe (what is mapped),
 * copy (a piece) or complete. With a PID at the end, as in "lock hang 1 4711", only calls for that process, which those of
 * init, describe and copy are not. Devices: /dev/nvidia-memory/.devices has a UUID (32 hex digits) and MiB per line; without it there is one
 * with 1024 MiB. /dev/nvidia-memory/.version has the version; without it that is 13000.
 */
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define MEMORY "/dev/nvidia-memory"

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
       INVALID_CONTEXT = 201, OPERATING_SYSTEM = 304, ILLEGAL_STATE = 401, NOT_FOUND = 500, NOT_SUPPORTED = 801,
       TIMEOUT = 909 };
enum { RUNNING, LOCKED, CHECKPOINTED, FAILED, CHECKPOINTING, RESTORING };
enum { NOTHING, DO_CHECKPOINT, DO_RESTORE, DO_SHOW, DO_LET_GO, DO_MAKE_ROOM, DO_TAKE_BACK, DO_UNLOCK };
enum { MAX_ALLOCATIONS = 64, MAX_DEVICES = 8, MAX_USES = 2, MAX_OPERATIONS = 64, MAX_QUEUED = 64 };
enum { PAIRS_VERSION = 13000, STORAGE_VERSION = 13040 };

static const uint64_t kMagic = 0x4144554345464146ull;
static const uint64_t kFirstPointer = 0x7e0000000000ull;
static const uint64_t kUseSpan = 1ull << 36; /* of pointers to memory of one device */

struct allocation {
    int32_t use;
    uint64_t offset; /* in the file of that */
    uint64_t size;   /* 0: free */
    void *saved;     /* while checkpointed */
};

/* A device, of which the process has a context. */
struct use {
    char uuid[33];
    int32_t memory_fd;
    uint64_t next;
};

EXPORT struct fake_cuda {
    uint64_t magic;
    _Atomic int32_t state;
    _Atomic int32_t gate;    /* calls wait */
    _Atomic int32_t busy;    /* calls that are being made */
    _Atomic int32_t command; /* for the thread */
    _Atomic int32_t asked, done;
    int32_t result;
    int32_t thread;
    int32_t uses_more; /* than can be checkpointed: managed memory, memory of other processes */
    int32_t control_fd, device_fd;
    int32_t use_count, seen_count;
    struct use uses[MAX_USES];
    char seen[MAX_DEVICES][33]; /* devices that were there when it began, whether it uses them or not */
    struct allocation allocations[MAX_ALLOCATIONS];
} fake_cuda_process;

static struct fake_cuda *const own = &fake_cuda_process;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Devices */

struct device {
    char uuid[33];
    uint64_t bytes;
};

static int read_devices(struct device *devices) {
    FILE *list = fopen(MEMORY "/.devices", "re");
    int count = 0;
    for (unsigned long long mib; list != NULL && count < MAX_DEVICES &&
                                 fscanf(list, "%32s %llu\n", devices[count].uuid, &mib) == 2;)
        devices[count++].bytes = mib << 20;
    if (list != NULL)
        fclose(list);
    else {
        strcpy(devices[0].uuid, "00112233445566778899aabbccddeeff");
        devices[count++].bytes = 1024ull << 20;
    }
    return count;
}

static int find_device(const char *uuid) {
    struct device devices[MAX_DEVICES];
    for (int i = 0, count = read_devices(devices); i < count; ++i)
        if (strcmp(devices[i].uuid, uuid) == 0)
            return i;
    return -1;
}

static uint64_t used_bytes(const char *uuid) {
    uint64_t sum = 0;
    DIR *folder = opendir(MEMORY);
    for (struct dirent *entry; folder != NULL && (entry = readdir(folder)) != NULL;) {
        struct stat about;
        const char *device = strchr(entry->d_name, '-');
        if (device != NULL && strcmp(device + 1, uuid) == 0 && fstatat(dirfd(folder), entry->d_name, &about, 0) == 0)
            sum += (uint64_t)about.st_size;
    }
    if (folder != NULL)
        closedir(folder);
    return sum;
}

static void bytes_of(const char *uuid, unsigned char *out) {
    for (int i = 0; i < 16; ++i) {
        unsigned value = 0;
        sscanf(uuid + 2 * i, "%2x", &value);
        out[i] = (unsigned char)value;
    }
}

static void text_of(const unsigned char *uuid, char *out) {
    for (int i = 0; i < 16; ++i)
        sprintf(out + 2 * i, "%02x", uuid[i]);
}

static int fault(const char *call, const char *kind);

EXPORT int cuInit(unsigned flags) {
    (void)flags;
    const int code = fault("init", "fail");
    return code != 0 ? code : access("/dev/nvidiactl", F_OK) == 0 ? SUCCESS : NO_DEVICE;
}

EXPORT int cuDriverGetVersion(int *version) {
    FILE *text = fopen(MEMORY "/.version", "re");
    if (text == NULL || fscanf(text, "%d", version) != 1)
        *version = 13000;
    if (text != NULL)
        fclose(text);
    return SUCCESS;
}

EXPORT int cuDeviceGetCount(int *count) {
    struct device devices[MAX_DEVICES];
    *count = read_devices(devices);
    return SUCCESS;
}

EXPORT int cuDeviceGet(int *device, int index) {
    *device = index;
    return SUCCESS;
}

EXPORT int cuDeviceGetUuid(unsigned char *uuid, int device) {
    struct device devices[MAX_DEVICES];
    if (device < 0 || device >= read_devices(devices))
        return INVALID_DEVICE;
    bytes_of(devices[device].uuid, uuid);
    return SUCCESS;
}

EXPORT int cuDeviceGetName(char *name, int size, int device) {
    snprintf(name, (size_t)size, "Emulated GPU %d", device);
    return SUCCESS;
}

EXPORT int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    struct device devices[MAX_DEVICES];
    if (device < 0 || device >= read_devices(devices))
        return INVALID_DEVICE;
    *bytes = devices[device].bytes;
    return SUCCESS;
}

EXPORT int cuGetErrorName(int code, const char **name) {
    switch (code) {
        case INVALID_CONTEXT: *name = "CUDA_ERROR_INVALID_CONTEXT"; break;
        case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
        case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
        case OPERATING_SYSTEM: *name = "CUDA_ERROR_OPERATING_SYSTEM"; break;
        case ILLEGAL_STATE: *name = "CUDA_ERROR_ILLEGAL_STATE"; break;
        case NOT_SUPPORTED: *name = "CUDA_ERROR_NOT_SUPPORTED"; break;
        case TIMEOUT: *name = "CUDA_ERROR_TIMEOUT"; break;
        default: *name = "CUDA_ERROR_UNKNOWN"; break;
    }
    return SUCCESS;
}

/* As the command cuda-checkpoint says it. */
EXPORT int cuGetErrorString(int code, const char **text) {
    switch (code) {
        case INVALID_VALUE: *text = "invalid argument"; return SUCCESS;
        case NOT_INITIALIZED: *text = "initialization error"; return SUCCESS;
        default: return cuGetErrorName(code, text);
    }
}

/* The program's side */

/* That the driver refuses to checkpoint who has done one of these is NVIDIA's word; how it says so is ours. */
EXPORT int cuMemAllocManaged(uint64_t *pointer, size_t size, unsigned flags) {
    (void)flags;
    void *memory = malloc(size);
    *pointer = (uint64_t)(uintptr_t)memory;
    own->uses_more = 1;
    return memory != NULL ? SUCCESS : OUT_OF_MEMORY;
}

EXPORT int cuIpcGetMemHandle(void *handle, uint64_t pointer) {
    memset(handle, 0, 64);
    memcpy(handle, &pointer, sizeof(pointer));
    own->uses_more = 1;
    return SUCCESS;
}

/* Such events are in a file of this name. */
EXPORT int cuIpcGetEventHandle(void *handle, void *event) {
    char path[64];
    memset(handle, 0, 64);
    memcpy(handle, &event, sizeof(event));
    snprintf(path, sizeof(path), "/dev/shm/cuda.shm.%x.%x.1", (unsigned)getuid(), (unsigned)getpid());
    const int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    const int good = file >= 0 && ftruncate(file, 4096) == 0 &&
                     mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) != MAP_FAILED;
    close(file);
    own->uses_more = 1;
    return good ? SUCCESS : OPERATING_SYSTEM;
}

static void memory_path(int pid, const struct use *use, char path[96]) {
    snprintf(path, 96, MEMORY "/%d-%s", pid, use->uuid);
}

static void attach_to(struct use *use) {
    char path[96];
    memory_path((int)getpid(), use, path);
    use->memory_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
}

static void attach(void) {
    own->control_fd = open("/dev/nvidiactl", O_RDWR | O_CLOEXEC);
    own->device_fd = open("/dev/nvidia0", O_RDWR | O_CLOEXEC);
    for (int i = 0; i < own->use_count; ++i)
        attach_to(&own->uses[i]);
}

static void detach(void) {
    char path[96];
    for (int i = 0; i < own->use_count; ++i) {
        memory_path((int)getpid(), &own->uses[i], path);
        close(own->uses[i].memory_fd);
        unlink(path);
    }
    close(own->device_fd);
    close(own->control_fd);
}

static int file_of(const struct allocation *a) { return own->uses[a->use].memory_fd; }

static int save(void) {
    for (struct allocation *a = own->allocations; a < own->allocations + MAX_ALLOCATIONS; ++a) {
        if (a->size == 0)
            continue;
        a->saved = mmap(NULL, a->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (a->saved == MAP_FAILED || pread(file_of(a), a->saved, a->size, (off_t)a->offset) != (ssize_t)a->size)
            return OUT_OF_MEMORY;
    }
    detach();
    own->state = CHECKPOINTED;
    return SUCCESS;
}

/* The memory that is handed out holds nothing of what it held. */
static int fill_with_garbage(void) {
    static unsigned char garbage[1 << 16];
    memset(garbage, 0xa5, sizeof(garbage));
    for (const struct use *use = own->uses; use < own->uses + own->use_count; ++use)
        for (uint64_t at = 0; at < use->next; at += sizeof(garbage)) {
            const size_t size = use->next - at < sizeof(garbage) ? use->next - at : sizeof(garbage);
            if (pwrite(use->memory_fd, garbage, size, (off_t)at) != (ssize_t)size)
                return OUT_OF_MEMORY;
        }
    return SUCCESS;
}

/* Whether the real one refuses who has nothing saved, because that was taken off by storage of the caller's, nobody knows:
 * this one lets it run on garbage. */
static int load(void) {
    attach();
    if (fill_with_garbage() != SUCCESS)
        return OUT_OF_MEMORY;
    for (struct allocation *a = own->allocations; a < own->allocations + MAX_ALLOCATIONS; ++a) {
        if (a->size == 0 || a->saved == NULL)
            continue;
        if (pwrite(file_of(a), a->saved, a->size, (off_t)a->offset) != (ssize_t)a->size)
            return OUT_OF_MEMORY;
        munmap(a->saved, a->size);
        a->saved = NULL;
    }
    own->state = LOCKED;
    return SUCCESS;
}

static int unlock(void) {
    own->gate = 0;
    own->state = RUNNING;
    return SUCCESS;
}

/* Somebody else copies what is there */

static int show(void) {
    own->state = CHECKPOINTING;
    return SUCCESS;
}

static int let_go(void) {
    detach();
    own->state = CHECKPOINTED;
    return SUCCESS;
}

static int make_room(void) {
    for (struct allocation *a = own->allocations; a < own->allocations + MAX_ALLOCATIONS; ++a)
        if (a->size != 0 && a->saved != NULL)
            return INVALID_VALUE;
    attach();
    if (fill_with_garbage() != SUCCESS)
        return OUT_OF_MEMORY;
    own->state = RESTORING;
    return SUCCESS;
}

static int take_back(void) {
    own->state = LOCKED;
    return SUCCESS;
}

static int obey(int command) {
    switch (command) {
        case DO_CHECKPOINT: return save();
        case DO_RESTORE: return load();
        case DO_SHOW: return show();
        case DO_LET_GO: return let_go();
        case DO_MAKE_ROOM: return make_room();
        case DO_TAKE_BACK: return take_back();
        case DO_UNLOCK: return unlock();
        default: return INVALID_VALUE;
    }
}

static void *serve(void *unused) {
    (void)unused;
    own->thread = (int32_t)syscall(SYS_gettid);
    for (;; usleep(1000)) {
        if (own->done == own->asked)
            continue;
        own->result = obey(own->command);
        own->done = own->asked;
    }
    return NULL;
}

static int start(void) {
    struct device devices[MAX_DEVICES];
    own->seen_count = read_devices(devices);
    for (int i = 0; i < own->seen_count; ++i)
        strcpy(own->seen[i], devices[i].uuid);
    attach();
    if (own->control_fd < 0 || own->device_fd < 0)
        return NO_DEVICE;
    pthread_t thread;
    if (pthread_create(&thread, NULL, serve, NULL) != 0)
        return OPERATING_SYSTEM;
    while (*(volatile int32_t *)&own->thread == 0)
        usleep(100);
    own->magic = kMagic;
    return SUCCESS;
}

static _Thread_local int current_use;

/* Of MAX_USES devices, one each. */
EXPORT int cuCtxCreate_v2(void **context, unsigned flags, int device) {
    struct device devices[MAX_DEVICES];
    (void)flags;
    if (device < 0 || device >= read_devices(devices) || own->use_count == MAX_USES)
        return INVALID_DEVICE;
    for (int i = 0; i < own->use_count; ++i)
        if (strcmp(own->uses[i].uuid, devices[device].uuid) == 0)
            return INVALID_CONTEXT;
    const int code = own->magic == kMagic ? SUCCESS : start();
    if (code != SUCCESS)
        return code;
    struct use *use = &own->uses[own->use_count];
    strcpy(use->uuid, devices[device].uuid);
    attach_to(use);
    if (use->memory_fd < 0)
        return NO_DEVICE;
    *context = use;
    current_use = own->use_count++;
    return SUCCESS;
}

/* Primary contexts, as the plugin's helper has them: they make no process of interest. */
static _Thread_local int current_device = -1;
static _Atomic int retained[MAX_DEVICES];

EXPORT int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = (void *)(intptr_t)(device + 1);
    ++retained[device];
    return SUCCESS;
}

EXPORT int cuDevicePrimaryCtxRelease_v2(int device) {
    --retained[device];
    return SUCCESS;
}

EXPORT int cuCtxSetCurrent(void *context) {
    if ((uintptr_t)context <= MAX_DEVICES)
        current_device = (int)(intptr_t)context - 1;
    else
        current_use = (int)((struct use *)context - own->uses);
    return SUCCESS;
}

EXPORT int cuCtxGetDevice(int *device) {
    *device = current_device;
    return current_device >= 0 ? SUCCESS : INVALID_CONTEXT;
}

EXPORT int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    struct device devices[MAX_DEVICES];
    if (current_device < 0 || current_device >= read_devices(devices))
        return INVALID_DEVICE;
    *total = devices[current_device].bytes;
    const uint64_t used = used_bytes(devices[current_device].uuid);
    *free_bytes = used < *total ? *total - used : 0;
    return SUCCESS;
}

static void enter(void) {
    for (;;) {
        while (own->gate)
            usleep(200);
        ++own->busy;
        if (!own->gate)
            return;
        --own->busy;
    }
}

static void leave(void) { --own->busy; }

static uint64_t pointer_to(const struct allocation *a) {
    return kFirstPointer + (uint64_t)a->use * kUseSpan + a->offset;
}

/* Where its memory is: in this file, there. */
static int find(uint64_t pointer, off_t *at) {
    for (struct allocation *a = own->allocations; a < own->allocations + MAX_ALLOCATIONS; ++a)
        if (a->size != 0 && pointer >= pointer_to(a) && pointer < pointer_to(a) + a->size) {
            *at = (off_t)(a->offset + pointer - pointer_to(a));
            return file_of(a);
        }
    return -1;
}

EXPORT int cuMemAlloc_v2(uint64_t *pointer, size_t size) {
    int code = OUT_OF_MEMORY;
    struct use *use = &own->uses[current_use];
    enter();
    pthread_mutex_lock(&lock);
    for (struct allocation *a = own->allocations; code != SUCCESS && a < own->allocations + MAX_ALLOCATIONS; ++a) {
        if (a->size != 0)
            continue;
        if (ftruncate(use->memory_fd, (off_t)(use->next + size)) != 0)
            break;
        a->use = current_use;
        a->offset = use->next;
        a->size = size;
        use->next += size;
        *pointer = pointer_to(a);
        code = SUCCESS;
    }
    pthread_mutex_unlock(&lock);
    leave();
    return code;
}

EXPORT int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t size) {
    off_t at = 0;
    enter();
    const int file = find(to, &at), good = file >= 0 && pwrite(file, from, size, at) == (ssize_t)size;
    leave();
    return good ? SUCCESS : INVALID_VALUE;
}

EXPORT int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t size) {
    off_t at = 0;
    enter();
    const int file = find(from, &at), good = file >= 0 && pread(file, to, size, at) == (ssize_t)size;
    leave();
    return good ? SUCCESS : INVALID_VALUE;
}

/* Kernels: there is one, which adds one to each of `count` numbers, and takes its time. */
enum { KERNEL_USEC = 300 };

EXPORT int cuModuleLoadData(void **module, const void *image) {
    *module = own;
    return strstr(image, ".entry increment(") != NULL ? SUCCESS : INVALID_VALUE;
}

EXPORT int cuModuleGetFunction(void **function, void *module, const char *name) {
    *function = module;
    return strcmp(name, "increment") == 0 ? SUCCESS : NOT_FOUND;
}

EXPORT int cuCtxSynchronize(void) { return SUCCESS; }

EXPORT int cuLaunchKernel(void *function, unsigned grid, unsigned grid_y, unsigned grid_z, unsigned block, unsigned block_y,
                          unsigned block_z, unsigned shared, void *stream, void **arguments, void **extra) {
    (void)grid_y, (void)grid_z, (void)block_y, (void)block_z, (void)shared, (void)stream, (void)extra;
    const uint64_t numbers = *(uint64_t *)arguments[0];
    const uint32_t count = *(uint32_t *)arguments[1];
    int code = INVALID_VALUE;
    if (function != own || grid * block < count)
        return INVALID_VALUE;
    enter();
    uint32_t *copy = malloc(count * sizeof(uint32_t));
    off_t at = 0;
    const int file = find(numbers, &at);
    const ssize_t size = (ssize_t)(count * sizeof(uint32_t));
    if (copy != NULL && file >= 0 && pread(file, copy, (size_t)size, at) == size) {
        for (size_t i = 0; i < count; ++i)
            ++copy[i];
        usleep(KERNEL_USEC);
        code = pwrite(file, copy, (size_t)size, at) == size ? SUCCESS : INVALID_VALUE;
    }
    free(copy);
    leave();
    return code;
}

/* The side of who checkpoints */

struct storage_info {
    void *operation;
    struct storage_region {
        uint64_t pointer;
        size_t size;
        void *stream;
    } *regions;
    uint32_t count;
};

static int version(void) {
    int number = 0;
    cuDriverGetVersion(&number);
    return number;
}

static int has_storage(void) { return version() >= STORAGE_VERSION; }

struct remote {
    int pid;
    uint64_t address; /* of its fake_cuda_process */
    struct fake_cuda state;
};

static int copy_out(const struct remote *remote, uint64_t at, void *to, size_t size) {
    struct iovec here = {to, size}, there = {(void *)(remote->address + at), size};
    return process_vm_readv(remote->pid, &here, 1, &there, 1, 0) == (ssize_t)size ? 0 : -1;
}

static int copy_in(const struct remote *remote, uint64_t at, void *from, size_t size) {
    struct iovec here = {from, size}, there = {(void *)(remote->address + at), size};
    return process_vm_writev(remote->pid, &here, 1, &there, 1, 0) == (ssize_t)size ? 0 : -1;
}

static int look(struct remote *remote) { return copy_out(remote, 0, &remote->state, sizeof(remote->state)); }

#define SET(remote, field, value) copy_in(remote, offsetof(struct fake_cuda, field), &(int32_t){value}, sizeof(int32_t))

/* The process that a call of this thread is about. */
static _Thread_local int subject;

static int find_process(int pid, struct remote *remote) {
    char path[64], line[512];
    Dl_info info;
    subject = pid;
    snprintf(path, sizeof(path), "/proc/%d/maps", pid);
    FILE *maps = fopen(path, "re");
    uint64_t base = 0;
    while (maps != NULL && base == 0 && fgets(line, sizeof(line), maps) != NULL)
        if (strstr(line, "/libcuda.so") != NULL)
            base = strtoull(line, NULL, 16);
    if (maps != NULL)
        fclose(maps);
    if (base == 0 || dladdr(own, &info) == 0)
        return INVALID_VALUE;
    remote->pid = pid;
    remote->address = base + ((uint64_t)own - (uint64_t)info.dli_fbase);
    if (look(remote) != 0 || remote->state.magic != kMagic)
        return INVALID_VALUE;
    snprintf(path, sizeof(path), "/proc/%d/task/%d", pid, remote->state.thread);
    return access(path, F_OK) == 0 ? SUCCESS : NOT_INITIALIZED; /* a fork has no such thread */
}

static int find_in_state(int pid, int state, struct remote *remote) {
    const int code = find_process(pid, remote);
    return code == SUCCESS && remote->state.state != state ? ILLEGAL_STATE : code;
}

/* What the test wants of this call: 0 nothing. */
static int fault(const char *call, const char *kind) {
    char name[20], what[20];
    int found = 0;
    FILE *faults = fopen(MEMORY "/.faults", "re");
    char line[80];
    while (faults != NULL && found == 0 && fgets(line, sizeof(line), faults) != NULL) {
        int value = 0, pid = 0;
        if (sscanf(line, "%19s %19s %d %d", name, what, &value, &pid) >= 2 && strcmp(name, call) == 0 &&
            strcmp(what, kind) == 0 && (pid == 0 || pid == subject))
            found = value != 0 ? value : 1;
    }
    if (faults != NULL)
        fclose(faults);
    return found;
}

static int before(const char *call) {
    char in[64];
    usleep((unsigned)fault(call, "delay") * 1000);
    if (fault(call, "hang")) {
        snprintf(in, sizeof(in), MEMORY "/.in-%s", call);
        close(open(in, O_CREAT | O_CLOEXEC, 0644));
        while (fault(call, "hang"))
            usleep(1000);
        unlink(in);
    }
    const int once = fault(call, "fail-once");
    if (once != 0 && unlink(MEMORY "/.faults") == 0)
        return once;
    return fault(call, "fail");
}

static int after(const char *call, int code) {
    const int told = fault(call, "fail-after");
    return told != 0 ? told : code;
}

static uint64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

EXPORT int cuCheckpointProcessGetRestoreThreadId(int pid, int *tid) {
    struct remote remote;
    const int code = find_process(pid, &remote);
    *tid = code == SUCCESS ? remote.state.thread : 0;
    return code == SUCCESS ? before("thread") : code;
}

EXPORT int cuCheckpointProcessGetState(int pid, int *state) {
    static const char *const calls[] = {"state-running", "state-locked", "state-checkpointed", "state-failed",
                                        "state-checkpointing", "state-restoring"};
    struct remote remote;
    const int code = find_process(pid, &remote);
    *state = code == SUCCESS ? remote.state.state : 0;
    return code == SUCCESS ? before(calls[remote.state.state]) : code;
}

EXPORT int cuCheckpointProcessLock(int pid, const uint32_t *args) {
    struct remote remote;
    int code = find_in_state(pid, RUNNING, &remote);
    if (code != SUCCESS)
        return code;
    if ((code = before("lock")) != SUCCESS)
        return code;
    SET(&remote, gate, 1);
    const uint64_t end = args[0] != 0 ? now_ms() + args[0] : UINT64_MAX, idle = now_ms() + (uint64_t)fault("lock", "busy");
    while (look(&remote) == 0 && (remote.state.busy != 0 || now_ms() < idle) && now_ms() < end)
        usleep(200);
    if (remote.state.busy != 0 || now_ms() < idle) {
        SET(&remote, gate, 0);
        return TIMEOUT;
    }
    return SET(&remote, state, LOCKED) == 0 ? after("lock", SUCCESS) : OPERATING_SYSTEM;
}

/* Until its thread has done it, however long that takes. */
static int have_done(struct remote *remote, int command) {
    const int32_t asked = remote->state.asked + 1;
    if (SET(remote, command, command) != 0 || SET(remote, asked, asked) != 0)
        return OPERATING_SYSTEM;
    while (look(remote) == 0)
        if (remote->state.done == asked)
            return remote->state.result;
        else
            usleep(200);
    return OPERATING_SYSTEM;
}

static int begin_storage(struct remote *remote, int command, struct storage_info **out);

EXPORT int cuCheckpointProcessCheckpoint(int pid, struct storage_info ***args) {
    struct remote remote;
    int code = find_in_state(pid, LOCKED, &remote);
    if (code != SUCCESS)
        return code;
    if ((code = before("checkpoint")) != SUCCESS)
        return code;
    if (remote.state.uses_more)
        return NOT_SUPPORTED;
    if (has_storage() && args[0] != NULL)
        return after("checkpoint", begin_storage(&remote, DO_SHOW, args[0]));
    return after("checkpoint", have_done(&remote, DO_CHECKPOINT));
}

struct restore_args {
    const struct pair {
        unsigned char from[16], to[16];
    } *pairs;
    uint32_t count, reserved;
    struct storage_info **storage_out;
};

/* By the map; 0 where it does not name it. */
static int new_name(const struct restore_args *args, const char *uuid, char *out) {
    char from[33] = "";
    for (uint32_t i = 0; i < args->count; ++i) {
        text_of(args->pairs[i].from, from);
        text_of(args->pairs[i].to, out);
        if (strcmp(from, uuid) == 0)
            return 1;
    }
    return 0;
}

/* All devices that it has seen have a place here, each its own. */
static int rename_seen(struct fake_cuda *state, const struct restore_args *args) {
    char to[33] = "";
    for (int i = 0; i < state->seen_count; ++i) {
        if (!new_name(args, state->seen[i], to) || find_device(to) < 0)
            return INVALID_VALUE;
        strcpy(state->seen[i], to);
        for (int other = 0; other < i; ++other)
            if (strcmp(state->seen[other], to) == 0)
                return INVALID_VALUE;
    }
    return SUCCESS;
}

/* 0, or what is wrong with the map. */
static int remap(struct remote *remote, const struct restore_args *args) {
    struct fake_cuda *state = &remote->state;
    char to[33] = "";
    const int has_map = args->pairs != NULL && args->count > 0;
    if (has_map && (version() < PAIRS_VERSION || rename_seen(state, args) != SUCCESS))
        return INVALID_VALUE;
    for (int i = 0; i < state->use_count; ++i) {
        if (has_map && new_name(args, state->uses[i].uuid, to))
            strcpy(state->uses[i].uuid, to);
        if (find_device(state->uses[i].uuid) < 0)
            return INVALID_VALUE;
    }
    const int good = copy_in(remote, offsetof(struct fake_cuda, uses), state->uses, sizeof(state->uses)) == 0 &&
                     copy_in(remote, offsetof(struct fake_cuda, seen), state->seen, sizeof(state->seen)) == 0;
    return good ? SUCCESS : OPERATING_SYSTEM;
}

EXPORT int cuCheckpointProcessRestore(int pid, const struct restore_args *args) {
    struct remote remote;
    int code = find_in_state(pid, CHECKPOINTED, &remote);
    if (code != SUCCESS)
        return code;
    if ((code = remap(&remote, args)) != SUCCESS)
        return code;
    if ((code = before("restore")) != SUCCESS) {
        if (code == OUT_OF_MEMORY) /* the real one is spoilt for good by that */
            SET(&remote, state, FAILED);
        return code;
    }
    if (has_storage() && args->storage_out != NULL)
        return after("restore", begin_storage(&remote, DO_MAKE_ROOM, args->storage_out));
    return after("restore", have_done(&remote, DO_RESTORE));
}

EXPORT int cuCheckpointProcessUnlock(int pid, const void *args) {
    (void)args;
    struct remote remote;
    int code = find_in_state(pid, LOCKED, &remote);
    if (code != SUCCESS)
        return code;
    if ((code = before("unlock")) != SUCCESS)
        return code;
    return after("unlock", have_done(&remote, DO_UNLOCK));
}

/* Storage of the caller's */

static const uint64_t kFirstMapping = 0x7d0000000000ull;
static const uint64_t kMappingSpan = 1ull << 36;

struct queued {
    void *to;
    const void *from;
    size_t size;
};

struct stream {
    int device;
    int count;
    pthread_mutex_t mutex;
    struct queued queue[MAX_QUEUED];
};

struct event {
    struct stream *stream;
};

static struct operation {
    int is_open;
    struct remote remote;
    int is_restore;
    char *memory[MAX_USES];
    struct storage_region regions[MAX_USES];
    struct storage_info info;
    struct stream streams[MAX_USES];
} operations[MAX_OPERATIONS];

static pthread_mutex_t operations_lock = PTHREAD_MUTEX_INITIALIZER;

/* What the driver asks for before it maps anything: a primary context of every device. */
static int has_contexts(void) {
    struct device devices[MAX_DEVICES];
    for (int i = 0, count = read_devices(devices); i < count; ++i)
        if (retained[i] <= 0)
            return 0;
    return 1;
}

static void unmap_memory(struct operation *operation) {
    for (int i = 0; i < MAX_USES; ++i)
        if (operation->memory[i] != NULL)
            munmap(operation->memory[i], operation->regions[i].size);
    memset(operation->memory, 0, sizeof(operation->memory));
}

/* Of one device. */
static int map_memory(struct operation *operation, int i) {
    const struct use *use = &operation->remote.state.uses[i];
    char path[96];
    struct stat about;
    memory_path(operation->remote.pid, use, path);
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return OPERATING_SYSTEM;
    void *memory = fstat(fd, &about) == 0 && about.st_size > 0
                       ? mmap(NULL, (size_t)about.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    close(fd);
    if (memory == MAP_FAILED)
        return OPERATING_SYSTEM;
    operation->memory[i] = memory;
    pthread_mutex_init(&operation->streams[i].mutex, NULL);
    operation->streams[i].device = find_device(use->uuid);
    operation->regions[i] = (struct storage_region){
        kFirstMapping + (uint64_t)((operation - operations) * MAX_USES + i) * kMappingSpan, (size_t)about.st_size,
        &operation->streams[i]};
    return SUCCESS;
}

static struct operation *new_operation(void) {
    struct operation *found = NULL;
    pthread_mutex_lock(&operations_lock);
    for (int i = 0; found == NULL && i < MAX_OPERATIONS; ++i)
        if (!operations[i].is_open)
            found = &operations[i];
    if (found != NULL) {
        memset(found, 0, sizeof(*found));
        found->is_open = 1;
    }
    pthread_mutex_unlock(&operations_lock);
    return found;
}

static int begin_storage(struct remote *remote, int command, struct storage_info **out) {
    int code = before("map");
    if (code != SUCCESS)
        return code;
    if (!has_contexts())
        return INVALID_CONTEXT;
    struct operation *operation = new_operation();
    if (operation == NULL)
        return OUT_OF_MEMORY;
    operation->remote = *remote;
    operation->is_restore = command == DO_MAKE_ROOM;
    code = have_done(remote, command);
    if (code == SUCCESS && look(&operation->remote) != 0)
        code = OPERATING_SYSTEM;
    const int count = operation->remote.state.use_count;
    for (int i = 0; i < count && code == SUCCESS; ++i)
        code = map_memory(operation, i);
    if (code != SUCCESS) {
        unmap_memory(operation);
        operation->is_open = 0;
        return code;
    }
    operation->info = (struct storage_info){operation, operation->regions, (uint32_t)count};
    *out = &operation->info;
    return SUCCESS;
}

EXPORT int cuCheckpointOperationComplete(struct operation *operation) {
    if (operation < operations || operation >= operations + MAX_OPERATIONS || !operation->is_open)
        return INVALID_VALUE;
    subject = operation->remote.pid;
    int code = before("complete");
    if (code != SUCCESS)
        return code;
    unmap_memory(operation);
    code = have_done(&operation->remote, operation->is_restore ? DO_TAKE_BACK : DO_LET_GO);
    if (code == SUCCESS)
        operation->is_open = 0;
    return after("complete", code);
}

/* `pointer` of a mapping here, or NULL. */
static char *mapped(uint64_t pointer, size_t size) {
    const uint64_t index = (pointer - kFirstMapping) / kMappingSpan, offset = (pointer - kFirstMapping) % kMappingSpan;
    const struct operation *operation = &operations[index / MAX_USES % MAX_OPERATIONS];
    const int i = (int)(index % MAX_USES);
    if (pointer < kFirstMapping || index >= MAX_OPERATIONS * MAX_USES || operation->memory[i] == NULL ||
        offset + size > operation->regions[i].size)
        return NULL;
    return operation->memory[i] + offset;
}

static int run_queue(struct stream *stream) {
    int code = SUCCESS;
    pthread_mutex_lock(&stream->mutex);
    for (int i = 0; i < stream->count && code == SUCCESS; ++i)
        if ((code = before("copy")) == SUCCESS)
            memcpy(stream->queue[i].to, stream->queue[i].from, stream->queue[i].size);
    stream->count = 0;
    pthread_mutex_unlock(&stream->mutex);
    return code;
}

static int enqueue(struct stream *stream, void *to, const void *from, size_t size) {
    if (to == NULL || from == NULL)
        return INVALID_VALUE;
    if (current_device != stream->device)
        return INVALID_CONTEXT;
    pthread_mutex_lock(&stream->mutex);
    const int good = stream->count < MAX_QUEUED;
    if (good)
        stream->queue[stream->count++] = (struct queued){to, from, size};
    pthread_mutex_unlock(&stream->mutex);
    return good ? SUCCESS : OUT_OF_MEMORY;
}

/* Under their plain names these have an ABI of long ago. */
EXPORT int cuMemcpyDtoHAsync(void) { return INVALID_CONTEXT; }
EXPORT int cuMemcpyHtoDAsync(void) { return INVALID_CONTEXT; }

EXPORT int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *stream) {
    return enqueue(stream, to, mapped(from, size), size);
}

EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream) {
    return enqueue(stream, mapped(to, size), from, size);
}

EXPORT int cuStreamCreate(struct stream **stream, unsigned flags) {
    (void)flags;
    if (current_device < 0)
        return INVALID_CONTEXT;
    *stream = calloc(1, sizeof(**stream));
    (*stream)->device = current_device;
    pthread_mutex_init(&(*stream)->mutex, NULL);
    return SUCCESS;
}

EXPORT int cuStreamDestroy_v2(struct stream *stream) {
    free(stream);
    return SUCCESS;
}

EXPORT int cuStreamSynchronize(struct stream *stream) { return run_queue(stream); }

EXPORT int cuStreamGetCtx_v2(struct stream *stream, void **context, void **green) {
    *green = NULL;
    *context = (void *)(intptr_t)(stream->device + 1);
    return before("describe");
}

EXPORT int cuEventCreate(struct event **event, unsigned flags) {
    (void)flags;
    *event = calloc(1, sizeof(**event));
    return SUCCESS;
}

EXPORT int cuEventDestroy_v2(struct event *event) {
    free(event);
    return SUCCESS;
}

EXPORT int cuEventRecord(struct event *event, struct stream *stream) {
    event->stream = stream;
    return SUCCESS;
}

EXPORT int cuEventSynchronize(struct event *event) { return event->stream != NULL ? run_queue(event->stream) : SUCCESS; }

EXPORT int cuMemHostAlloc(void **memory, size_t size, unsigned flags) {
    (void)flags;
    return posix_memalign(memory, 4096, size) == 0 ? SUCCESS : OUT_OF_MEMORY;
}

EXPORT int cuMemFreeHost(void *memory) {
    free(memory);
    return SUCCESS;
}

/* The newest version of a function that there is. */
EXPORT int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status) {
    char newest[80];
    (void)flags;
    snprintf(newest, sizeof(newest), "%s_v2", name);
    *function = NULL;
    *status = 1;
    if (version >= STORAGE_VERSION && !has_storage())
        return INVALID_VALUE;
    Dl_info info;
    void *library = dladdr(own, &info) != 0 ? dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD) : NULL;
    if (library == NULL)
        return NOT_FOUND;
    if ((*function = dlsym(library, newest)) == NULL)
        *function = dlsym(library, name);
    *status = *function != NULL ? 0 : 1;
    return *function != NULL ? SUCCESS : NOT_FOUND;
}
