/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A program on a GPU (here: the emulation's): each of its processes has numbers in device memory that a kernel
 * increments, and reads them back after each time. usage: cuda-counter STATUS PROCESSES MIB [odd]. STATUS-K of process K
 * has, as 64-bit numbers: rounds, numbers that were wrong, errors of calls, PID. Odd: it has a connection to
 * $CUDA_MPS_PIPE_DIRECTORY/control, and forks a child that does nothing.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int cuInit(unsigned flags);
int cuCtxCreate_v2(void **context, unsigned flags, int device);
int cuMemAlloc_v2(uint64_t *pointer, size_t size);
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t size);
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t size);
int fakeLaunchIncrement(uint64_t numbers, size_t count, unsigned usec);

enum { NUMBERS = 4096, KERNEL_USEC = 300 };

/* The rest of device memory has a pattern that must come back. */
static int fill(uint64_t *device, size_t size, unsigned seed) {
    uint32_t *words = malloc(size);
    for (size_t i = 0; i < size / 4; ++i)
        words[i] = (uint32_t)(i * 2654435761u + seed);
    int code = cuMemAlloc_v2(device, size);
    if (code == 0)
        code = cuMemcpyHtoD_v2(*device, words, size);
    free(words);
    return code;
}

static size_t count_wrong(uint64_t device, size_t size, unsigned seed) {
    uint32_t *words = malloc(size);
    size_t wrong = 0;
    if (cuMemcpyDtoH_v2(words, device, size) != 0)
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

static int count(const char *path, unsigned seed, size_t size, int is_odd) {
    static uint32_t numbers[NUMBERS];
    uint64_t status[4] = {0, 0, 0, (uint64_t)getpid()};
    uint64_t device = 0, pattern = 0;
    void *context = NULL;
    if (cuInit(0) != 0 || cuCtxCreate_v2(&context, 0, 0) != 0 || cuMemAlloc_v2(&device, sizeof(numbers)) != 0 ||
        cuMemcpyHtoD_v2(device, numbers, sizeof(numbers)) != 0 || fill(&pattern, size, seed) != 0)
        return 1;
    if (is_odd && be_odd() != 0)
        return 1;
    for (;;) {
        status[2] += fakeLaunchIncrement(device, NUMBERS, KERNEL_USEC) != 0;
        status[2] += cuMemcpyDtoH_v2(numbers, device, sizeof(numbers)) != 0;
        ++status[0];
        for (int i = 0; i < NUMBERS; ++i)
            status[1] += numbers[i] != (uint32_t)status[0];
        if (status[0] % 64 == 0)
            status[1] += count_wrong(pattern, size, seed);
        int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
        if (fd < 0 || pwrite(fd, status, sizeof(status), 0) != sizeof(status))
            return 1;
        close(fd);
        usleep(1000);
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
    return count(path, (unsigned)number, size, argc == 5);
}
