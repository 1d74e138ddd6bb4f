/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A program on a GPU, or on the emulation of one: each of its processes has numbers in device memory that a kernel
 * increments, and reads them back after each time. usage: cuda-counter STATUS PROCESSES MIB [odd|managed|ipc|event|two]. STATUS-K of
 * process K has, as 64-bit numbers: rounds, numbers that were wrong, errors of calls, PID. Odd: each has a connection to
 * $CUDA_MPS_PIPE_DIRECTORY/control, and forks a child that does nothing. Managed, ipc: the last one has managed memory, or
 * offers memory or an event to other processes. Two: each has as much on a second device.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Of any libcuda.so.1, the real one too: nothing of CUDA is needed to build this. */
static int (*cuInit)(unsigned flags);
static int (*cuCtxCreate)(void **context, unsigned flags, int device);
static int (*cuMemAlloc)(uint64_t *pointer, size_t size);
static int (*cuMemcpyHtoD)(uint64_t to, const void *from, size_t size);
static int (*cuMemcpyDtoH)(void *to, uint64_t from, size_t size);
static int (*cuModuleLoadData)(void **module, const void *image);
static int (*cuModuleGetFunction)(void **function, void *module, const char *name);
static int (*cuLaunchKernel)(void *function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *stream,
                             void **arguments, void **extra);
static int (*cuCtxSynchronize)(void);

/* What begins a program in PTX, for all devices since then; the newer one for a driver that has forgotten the older. */
static const char *const kTargets[] = {".version 6.0\n.target sm_70\n", ".version 7.8\n.target sm_90\n"};
/* Adds one to each of `count` numbers. */
static const char kKernel[] =
    ".address_size 64\n"
    ".visible .entry increment(.param .u64 numbers, .param .u32 count)\n{\n"
    "    .reg .pred %p<2>;\n    .reg .b32 %r<7>;\n    .reg .b64 %rd<4>;\n"
    "    ld.param.u64 %rd1, [numbers];\n    ld.param.u32 %r1, [count];\n"
    "    mov.u32 %r2, %ctaid.x;\n    mov.u32 %r3, %ntid.x;\n    mov.u32 %r4, %tid.x;\n"
    "    mad.lo.s32 %r5, %r2, %r3, %r4;\n    setp.ge.u32 %p1, %r5, %r1;\n    @%p1 bra END;\n"
    "    cvta.to.global.u64 %rd1, %rd1;\n    mul.wide.u32 %rd2, %r5, 4;\n    add.s64 %rd3, %rd1, %rd2;\n"
    "    ld.global.u32 %r6, [%rd3];\n    add.u32 %r6, %r6, 1;\n    st.global.u32 [%rd3], %r6;\n"
    "END:\n    ret;\n}\n";

static int load(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    const struct {
        const char *name;
        void *function;
    } wanted[] = {{"cuInit", &cuInit}, {"cuCtxCreate_v2", &cuCtxCreate}, {"cuMemAlloc_v2", &cuMemAlloc},
                  {"cuMemcpyHtoD_v2", &cuMemcpyHtoD}, {"cuMemcpyDtoH_v2", &cuMemcpyDtoH},
                  {"cuModuleLoadData", &cuModuleLoadData}, {"cuModuleGetFunction", &cuModuleGetFunction},
                  {"cuLaunchKernel", &cuLaunchKernel}, {"cuCtxSynchronize", &cuCtxSynchronize}};
    for (size_t i = 0; i < sizeof(wanted) / sizeof(*wanted); ++i) {
        void *found = library != NULL ? dlsym(library, wanted[i].name) : NULL;
        if (found == NULL)
            return fprintf(stderr, "cuda-counter: %s\n", dlerror());
        memcpy(wanted[i].function, &found, sizeof(found));
    }
    return cuInit(0);
}

/* Whether it did; nobody can ask this program later what was wrong. */
static int fails(const char *what, int code) {
    if (code != 0)
        fprintf(stderr, "cuda-counter: %s: error %d\n", what, code);
    return code != 0;
}

static int load_kernel(void **module) {
    char text[sizeof(kKernel) + 64];
    int code = 0;
    for (size_t i = 0; i < sizeof(kTargets) / sizeof(*kTargets); ++i) {
        snprintf(text, sizeof(text), "%s%s", kTargets[i], kKernel);
        if ((code = cuModuleLoadData(module, text)) == 0)
            return 0;
    }
    return code;
}

static int launch(void *function, uint64_t numbers, unsigned count) {
    void *arguments[] = {&numbers, &count};
    const int code = cuLaunchKernel(function, (count + 255) / 256, 1, 1, 256, 1, 1, 0, NULL, arguments, NULL);
    return code != 0 ? code : cuCtxSynchronize();
}

enum { NUMBERS = 4096 };

/* The rest of device memory has a pattern that must come back. */
static int fill(uint64_t *device, size_t size, unsigned seed) {
    uint32_t *words = malloc(size);
    for (size_t i = 0; i < size / 4; ++i)
        words[i] = (uint32_t)(i * 2654435761u + seed);
    int code = cuMemAlloc(device, size);
    if (code == 0)
        code = cuMemcpyHtoD(*device, words, size);
    free(words);
    return code;
}

static size_t count_wrong(uint64_t device, size_t size, unsigned seed) {
    uint32_t *words = malloc(size);
    size_t wrong = 0;
    if (cuMemcpyDtoH(words, device, size) != 0)
        wrong = size;
    for (size_t i = 0; i < size / 4; ++i)
        wrong += words[i] != (uint32_t)(i * 2654435761u + seed);
    free(words);
    return wrong;
}

static int be_odd(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%.80s/control", getenv("CUDA_MPS_PIPE_DIRECTORY"));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0)
        return 1;
    if (fork() == 0)
        for (;;)
            pause();
    return 0;
}

static int have_managed(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW), *found = library != NULL ? dlsym(library, "cuMemAllocManaged") : NULL;
    int (*allocate)(uint64_t *pointer, size_t size, unsigned flags);
    uint64_t pointer = 0;
    memcpy(&allocate, &found, sizeof(found));
    return found == NULL || allocate(&pointer, 1 << 20, 1 /* CU_MEM_ATTACH_GLOBAL */) != 0;
}

static int offer(uint64_t device) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW), *found = library != NULL ? dlsym(library, "cuIpcGetMemHandle") : NULL;
    int (*get_handle)(void *handle, uint64_t pointer);
    char handle[64];
    memcpy(&get_handle, &found, sizeof(found));
    return found == NULL || get_handle(handle, device) != 0;
}

/* The context of the first one is current again. */
static int use_second(void *first, uint64_t *pattern, size_t size, unsigned seed) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW), *found = library != NULL ? dlsym(library, "cuCtxSetCurrent") : NULL;
    int (*set_current)(void *context);
    void *second = NULL;
    memcpy(&set_current, &found, sizeof(found));
    return found == NULL || cuCtxCreate(&second, 0, 1) != 0 || fill(pattern, size, seed) != 0 || set_current(first) != 0;
}

static int offer_event(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW), *event = NULL;
    void *found[] = {library != NULL ? dlsym(library, "cuEventCreate") : NULL,
                     library != NULL ? dlsym(library, "cuIpcGetEventHandle") : NULL};
    int (*create)(void **event, unsigned flags);
    int (*get_handle)(void *handle, void *event);
    char handle[64];
    memcpy(&create, &found[0], sizeof(create));
    memcpy(&get_handle, &found[1], sizeof(get_handle));
    return found[0] == NULL || found[1] == NULL ||
           create(&event, 2 | 4 /* CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS */) != 0 || get_handle(handle, event) != 0;
}

static int do_more(const char *what, int is_last, uint64_t device) {
    if (strcmp(what, "odd") == 0)
        return be_odd();
    if (strcmp(what, "managed") == 0)
        return is_last && have_managed();
    if (strcmp(what, "event") == 0)
        return is_last && offer_event();
    return strcmp(what, "ipc") != 0 || (is_last && offer(device));
}

static int count(const char *path, unsigned seed, size_t size, int is_last, const char *more) {
    static uint32_t numbers[NUMBERS];
    uint64_t status[4] = {0, 0, 0, (uint64_t)getpid()};
    const unsigned other_seed = seed + 1000;
    uint64_t device = 0, pattern = 0, other = 0;
    void *context = NULL, *module = NULL, *increment = NULL;
    if (fails("the driver", load()) || fails("its context", cuCtxCreate(&context, 0, 0)) ||
        fails("memory", cuMemAlloc(&device, sizeof(numbers))) || fails("copying", cuMemcpyHtoD(device, numbers, sizeof(numbers))) ||
        fails("its pattern", fill(&pattern, size, seed)) || fails("its kernel", load_kernel(&module)) ||
        fails("increment", cuModuleGetFunction(&increment, module, "increment")))
        return 1;
    const int has_other = more != NULL && strcmp(more, "two") == 0;
    if (has_other && use_second(context, &other, size, other_seed) != 0)
        return 1;
    if (!has_other && more != NULL && do_more(more, is_last, device) != 0)
        return 1;
    for (;;) {
        status[2] += launch(increment, device, NUMBERS) != 0;
        status[2] += cuMemcpyDtoH(numbers, device, sizeof(numbers)) != 0;
        ++status[0];
        for (int i = 0; i < NUMBERS; ++i)
            status[1] += numbers[i] != (uint32_t)status[0];
        if (status[0] % 64 == 0)
            status[1] += count_wrong(pattern, size, seed) + (has_other ? count_wrong(other, size, other_seed) : 0);
        int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
        if (fd < 0 || pwrite(fd, status, sizeof(status), 0) != sizeof(status))
            return 1;
        close(fd);
        usleep(5000);
    }
}

int main(int argc, char **argv) {
    if (argc != 4 && argc != 5)
        return 2;
    const int processes = atoi(argv[2]);
    const size_t size = (size_t)atoi(argv[3]) << 20;
    char path[300];
    int number = processes - 1;
    while (number > 0 && fork() != 0)
        --number;
    snprintf(path, sizeof(path), "%.200s-%d", argv[1], number);
    return count(path, (unsigned)number, size, number == processes - 1, argv[4]);
}
