/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* An emulation of NVIDIA's libnvidia-ml.so.1, as far as the CUDA plugin uses it, for the devices of libcuda.c: who has how
 * much of device memory, all of it on one device. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#define EXPORT __attribute__((visibility("default")))

enum { SUCCESS = 0, INSUFFICIENT_SIZE = 7 };

struct process_info {
    unsigned pid;
    unsigned long long bytes;
    unsigned gpu_instance, compute_instance;
};

EXPORT int nvmlInit_v2(void) { return SUCCESS; }

EXPORT int nvmlShutdown(void) { return SUCCESS; }

EXPORT int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = 1;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(unsigned long)(index + 1);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, struct process_info *list) {
    const unsigned room = *count;
    (void)device;
    *count = 0;
    DIR *folder = opendir("/dev/nvidia-memory");
    for (struct dirent *entry; folder != NULL && (entry = readdir(folder)) != NULL;) {
        struct stat about;
        char *end = NULL;
        const unsigned long pid = strtoul(entry->d_name, &end, 10);
        if (pid == 0 || *end != '-' || fstatat(dirfd(folder), entry->d_name, &about, 0) != 0)
            continue;
        if (*count < room)
            list[*count] = (struct process_info){(unsigned)pid, (unsigned long long)about.st_size, ~0u, ~0u};
        ++*count;
    }
    if (folder != NULL)
        closedir(folder);
    return *count <= room ? SUCCESS : INSUFFICIENT_SIZE;
}
