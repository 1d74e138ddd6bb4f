/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An emulation of NVIDIA's libcuda.so.1, as far as programs in the tests and the CUDA plugin use it. It is on both
 * sides, as the real one is: in programs that compute, and in whoever checkpoints them.
 *
 * Device memory of process PID is the file /dev/nvidia-memory/PID-UUID, so it is outside of the program, and the program
 * holds descriptors below /dev/nvidia*, which nobody can carry. The driver's state of a process is in its own memory
 * (fake_cuda_process), so that it is where the process is, also after a restore; who checkpoints it finds it through
 * /proc/PID/maps. A thread of the process does the work of a checkpoint and of a restore: while it stands still, these
 * calls hang, as with the real driver.
 *
 * Faults: /dev/nvidia-memory/.faults has lines "CALL delay MS", "CALL fail CODE", "CALL fail-after CODE" (it was done
 * nevertheless), "CALL hang" (as long as the line is there); CALL is lock, checkpoint, restore or unlock. Devices:
 * /dev/nvidia-memory/.devices has a UUID (32 hex digits) and MiB per line; without it there is one with 1024 MiB.
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
       OPERATING_SYSTEM = 304, ILLEGAL_STATE = 401, TIMEOUT = 909 };
enum { RUNNING, LOCKED, CHECKPOINTED, FAILED };
enum { NOTHING, DO_CHECKPOINT, DO_RESTORE };
enum { MAX_ALLOCATIONS = 64, MAX_DEVICES = 8 };

static const uint64_t kMagic = 0x4144554345464146ull;
static const uint64_t kFirstPointer = 0x7e0000000000ull;

struct allocation {
    uint64_t offset; /* in the file */
    uint64_t size;   /* 0: free */
    void *saved;     /* while checkpointed */
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
    int32_t device; /* of its context */
    char uuid[33];
    int control_fd, device_fd, memory_fd;
    uint64_t next;
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

EXPORT int cuInit(unsigned flags) {
    (void)flags;
    return access("/dev/nvidiactl", F_OK) == 0 ? SUCCESS : NO_DEVICE;
}

EXPORT int cuDriverGetVersion(int *version) {
    const char *text = getenv("FAKE_CUDA_VERSION");
    *version = text != NULL ? atoi(text) : 13000;
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

EXPORT int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    struct device devices[MAX_DEVICES];
    if (device < 0 || device >= read_devices(devices))
        return INVALID_DEVICE;
    *bytes = devices[device].bytes;
    return SUCCESS;
}

EXPORT int cuGetErrorName(int code, const char **name) {
    switch (code) {
        case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
        case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
        case OPERATING_SYSTEM: *name = "CUDA_ERROR_OPERATING_SYSTEM"; break;
        case ILLEGAL_STATE: *name = "CUDA_ERROR_ILLEGAL_STATE"; break;
        case TIMEOUT: *name = "CUDA_ERROR_TIMEOUT"; break;
        default: *name = "CUDA_ERROR_UNKNOWN"; break;
    }
    return SUCCESS;
}

/* The program's side */

static void attach(void) {
    char path[96];
    own->control_fd = open("/dev/nvidiactl", O_RDWR | O_CLOEXEC);
    own->device_fd = open("/dev/nvidia0", O_RDWR | O_CLOEXEC);
    snprintf(path, sizeof(path), MEMORY "/%d-%s", (int)getpid(), own->uuid);
    own->memory_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
}

static void detach(void) {
    char path[96];
    snprintf(path, sizeof(path), MEMORY "/%d-%s", (int)getpid(), own->uuid);
    close(own->memory_fd);
    close(own->device_fd);
    close(own->control_fd);
    unlink(path);
}

static int save(void) {
    for (struct allocation *a = own->allocations; a < own->allocations + MAX_ALLOCATIONS; ++a) {
        if (a->size == 0)
            continue;
        a->saved = mmap(NULL, a->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (a->saved == MAP_FAILED || pread(own->memory_fd, a->saved, a->size, (off_t)a->offset) != (ssize_t)a->size)
            return OUT_OF_MEMORY;
    }
    detach();
    own->state = CHECKPOINTED;
    return SUCCESS;
}

static int load(void) {
    attach();
    for (struct allocation *a = own->allocations; a < own->allocations + MAX_ALLOCATIONS; ++a) {
        if (a->size == 0)
            continue;
        if (pwrite(own->memory_fd, a->saved, a->size, (off_t)a->offset) != (ssize_t)a->size)
            return OUT_OF_MEMORY;
        munmap(a->saved, a->size);
    }
    own->state = LOCKED;
    return SUCCESS;
}

static void *serve(void *unused) {
    (void)unused;
    own->thread = (int32_t)syscall(SYS_gettid);
    for (;; usleep(500)) {
        if (own->done == own->asked)
            continue;
        own->result = own->command == DO_CHECKPOINT ? save() : load();
        own->done = own->asked;
    }
    return NULL;
}

static int start(int device) {
    struct device devices[MAX_DEVICES];
    if (device < 0 || device >= read_devices(devices))
        return INVALID_DEVICE;
    own->device = device;
    strcpy(own->uuid, devices[device].uuid);
    attach();
    if (own->control_fd < 0 || own->device_fd < 0 || own->memory_fd < 0)
        return NO_DEVICE;
    pthread_t thread;
    if (pthread_create(&thread, NULL, serve, NULL) != 0)
        return OPERATING_SYSTEM;
    while (*(volatile int32_t *)&own->thread == 0)
        usleep(100);
    own->magic = kMagic;
    return SUCCESS;
}

EXPORT int cuCtxCreate_v2(void **context, unsigned flags, int device) {
    (void)flags;
    *context = own;
    return own->magic == kMagic ? SUCCESS : start(device);
}

/* For asking what is free, as the plugin's helper does: that makes no process of interest. */
static _Thread_local int current_device = -1;

EXPORT int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = (void *)(intptr_t)(device + 1);
    return SUCCESS;
}

EXPORT int cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    return SUCCESS;
}

EXPORT int cuCtxSetCurrent(void *context) {
    current_device = (int)(intptr_t)context - 1;
    return SUCCESS;
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

static struct allocation *find(uint64_t pointer) {
    for (struct allocation *a = own->allocations; a < own->allocations + MAX_ALLOCATIONS; ++a)
        if (a->size != 0 && pointer >= kFirstPointer + a->offset && pointer < kFirstPointer + a->offset + a->size)
            return a;
    return NULL;
}

EXPORT int cuMemAlloc_v2(uint64_t *pointer, size_t size) {
    int code = OUT_OF_MEMORY;
    enter();
    pthread_mutex_lock(&lock);
    for (struct allocation *a = own->allocations; code != SUCCESS && a < own->allocations + MAX_ALLOCATIONS; ++a) {
        if (a->size != 0)
            continue;
        if (ftruncate(own->memory_fd, (off_t)(own->next + size)) != 0)
            break;
        a->offset = own->next;
        a->size = size;
        own->next += size;
        *pointer = kFirstPointer + a->offset;
        code = SUCCESS;
    }
    pthread_mutex_unlock(&lock);
    leave();
    return code;
}

EXPORT int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t size) {
    enter();
    const int good = find(to) != NULL && pwrite(own->memory_fd, from, size, (off_t)(to - kFirstPointer)) == (ssize_t)size;
    leave();
    return good ? SUCCESS : INVALID_VALUE;
}

EXPORT int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t size) {
    enter();
    const int good = find(from) != NULL && pread(own->memory_fd, to, size, (off_t)(from - kFirstPointer)) == (ssize_t)size;
    leave();
    return good ? SUCCESS : INVALID_VALUE;
}

/* Stands for a kernel: adds one to each of `count` numbers, and takes `usec`. */
EXPORT int fakeLaunchIncrement(uint64_t numbers, size_t count, unsigned usec) {
    int code = INVALID_VALUE;
    enter();
    uint32_t *copy = malloc(count * sizeof(uint32_t));
    const off_t at = (off_t)(numbers - kFirstPointer);
    const ssize_t size = (ssize_t)(count * sizeof(uint32_t));
    if (copy != NULL && find(numbers) != NULL && pread(own->memory_fd, copy, (size_t)size, at) == size) {
        for (size_t i = 0; i < count; ++i)
            ++copy[i];
        usleep(usec);
        code = pwrite(own->memory_fd, copy, (size_t)size, at) == size ? SUCCESS : INVALID_VALUE;
    }
    free(copy);
    leave();
    return code;
}

/* The side of who checkpoints */

struct remote {
    int pid;
    uint64_t address; /* of its fake_cuda_process */
    struct fake_cuda state;
};

static int copy_out(const struct remote *remote, uint64_t at, void *to, size_t size) {
    struct iovec here = {to, size}, there = {(void *)(remote->address + at), size};
    return process_vm_readv(remote->pid, &here, 1, &there, 1, 0) == (ssize_t)size ? 0 : -1;
}

static int copy_in(const struct remote *remote, uint64_t at, int32_t value) {
    struct iovec here = {&value, sizeof(value)}, there = {(void *)(remote->address + at), sizeof(value)};
    return process_vm_writev(remote->pid, &here, 1, &there, 1, 0) == sizeof(value) ? 0 : -1;
}

static int look(struct remote *remote) { return copy_out(remote, 0, &remote->state, sizeof(remote->state)); }

#define SET(remote, field, value) copy_in(remote, offsetof(struct fake_cuda, field), value)

static int find_process(int pid, struct remote *remote) {
    char path[64], line[512];
    Dl_info info;
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
    return look(remote) == 0 && remote->state.magic == kMagic ? SUCCESS : INVALID_VALUE;
}

static int find_in_state(int pid, int state, struct remote *remote) {
    const int code = find_process(pid, remote);
    return code == SUCCESS && remote->state.state != state ? ILLEGAL_STATE : code;
}

/* What the test wants of this call: 0 nothing. */
static int fault(const char *call, const char *kind) {
    char name[20], what[20];
    int value = 0, found = 0;
    FILE *faults = fopen(MEMORY "/.faults", "re");
    char line[80];
    while (faults != NULL && found == 0 && fgets(line, sizeof(line), faults) != NULL)
        if (sscanf(line, "%19s %19s %d", name, what, &value) >= 2 && strcmp(name, call) == 0 && strcmp(what, kind) == 0)
            found = value != 0 ? value : 1;
    if (faults != NULL)
        fclose(faults);
    return found;
}

static int before(const char *call) {
    usleep((unsigned)fault(call, "delay") * 1000);
    while (fault(call, "hang"))
        usleep(1000);
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
    return code;
}

EXPORT int cuCheckpointProcessGetState(int pid, int *state) {
    struct remote remote;
    const int code = find_process(pid, &remote);
    *state = code == SUCCESS ? remote.state.state : 0;
    return code;
}

EXPORT int cuCheckpointProcessLock(int pid, const uint32_t *args) {
    struct remote remote;
    int code = find_in_state(pid, RUNNING, &remote);
    if (code != SUCCESS)
        return code;
    if ((code = before("lock")) != SUCCESS)
        return code;
    SET(&remote, gate, 1);
    const uint64_t end = args[0] != 0 ? now_ms() + args[0] : UINT64_MAX;
    while (look(&remote) == 0 && remote.state.busy != 0 && now_ms() < end)
        usleep(200);
    if (remote.state.busy != 0) {
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

EXPORT int cuCheckpointProcessCheckpoint(int pid, void *args) {
    (void)args;
    struct remote remote;
    int code = find_in_state(pid, LOCKED, &remote);
    if (code != SUCCESS)
        return code;
    if ((code = before("checkpoint")) != SUCCESS)
        return code;
    return after("checkpoint", have_done(&remote, DO_CHECKPOINT));
}

struct restore_args {
    struct {
        unsigned char from[16], to[16];
    } *pairs;
    uint32_t count;
};

/* 0, or what is wrong with the map. */
static int remap(struct remote *remote, const struct restore_args *args) {
    char from[33] = "", to[33] = "";
    for (uint32_t i = 0; args->pairs != NULL && i < args->count; ++i) {
        text_of(args->pairs[i].from, from);
        text_of(args->pairs[i].to, to);
        if (strcmp(from, remote->state.uuid) != 0)
            continue;
        const int device = find_device(to);
        struct iovec here = {to, sizeof(to)};
        struct iovec there = {(void *)(remote->address + offsetof(struct fake_cuda, uuid)), sizeof(to)};
        if (device < 0)
            return INVALID_VALUE;
        SET(remote, device, device);
        return process_vm_writev(remote->pid, &here, 1, &there, 1, 0) == sizeof(to) ? SUCCESS : OPERATING_SYSTEM;
    }
    return args->count > 0 || find_device(remote->state.uuid) < 0 ? INVALID_VALUE : SUCCESS;
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
    SET(&remote, gate, 0);
    return SET(&remote, state, RUNNING) == 0 ? after("unlock", SUCCESS) : OPERATING_SYSTEM;
}
