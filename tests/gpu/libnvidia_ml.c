/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* An emulation of NVIDIA's libnvidia-ml.so.1, as far as the CUDA plugin uses it, for the devices of libcuda.c: who has how
 * much of device memory, and of which. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define EXPORT __attribute__((visibility("default")))

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, INSUFFICIENT_SIZE = 7, MAX_DEVICES = 8 };

struct process_info {
    unsigned pid;
    unsigned long long bytes;
    unsigned gpu_instance, compute_instance;
};

struct memory {
    unsigned long long total, free, used;
};

EXPORT int nvmlInit_v2(void) { return SUCCESS; }

EXPORT int nvmlShutdown(void) { return SUCCESS; }

/* As in libcuda.c; answers how many there are. */
static unsigned read_devices(char uuids[MAX_DEVICES][33]) {
    FILE *list = fopen("/dev/nvidia-memory/.devices", "re");
    unsigned count = 0;
    if (list == NULL)
        strcpy(uuids[count++], "00112233445566778899aabbccddeeff");
    while (list != NULL && count < MAX_DEVICES && fscanf(list, "%32s %*u\n", uuids[count]) == 1)
        ++count;
    if (list != NULL)
        fclose(list);
    return count;
}

EXPORT int nvmlDeviceGetCount_v2(unsigned *count) {
    char uuids[MAX_DEVICES][33];
    *count = read_devices(uuids);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(unsigned long)(index + 1);
    return SUCCESS;
}

static int uuid_of(void *device, char *out) {
    char uuids[MAX_DEVICES][33];
    const unsigned long index = (unsigned long)device - 1;
    if (index >= read_devices(uuids))
        return INVALID_ARGUMENT;
    strcpy(out, uuids[index]);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetUUID(void *device, char *out, unsigned size) {
    char uuid[33];
    if (uuid_of(device, uuid) != SUCCESS)
        return INVALID_ARGUMENT;
    snprintf(out, size, "GPU-%.8s-%.4s-%.4s-%.4s-%.12s", uuid, uuid + 8, uuid + 12, uuid + 16, uuid + 20);
    return SUCCESS;
}

EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, struct process_info *list) {
    const unsigned room = *count;
    char uuid[33];
    *count = 0;
    if (uuid_of(device, uuid) != SUCCESS)
        return INVALID_ARGUMENT;
    DIR *folder = opendir("/dev/nvidia-memory");
    for (struct dirent *entry; folder != NULL && (entry = readdir(folder)) != NULL;) {
        struct stat about;
        char *end = NULL;
        const unsigned long pid = strtoul(entry->d_name, &end, 10);
        if (pid == 0 || *end != '-' || strcmp(end + 1, uuid) != 0 || fstatat(dirfd(folder), entry->d_name, &about, 0) != 0)
            continue;
        if (*count < room)
            list[*count] = (struct process_info){(unsigned)pid, (unsigned long long)about.st_size, ~0u, ~0u};
        ++*count;
    }
    if (folder != NULL)
        closedir(folder);
    return *count <= room ? SUCCESS : INSUFFICIENT_SIZE;
}

EXPORT int nvmlDeviceGetMemoryInfo(void *device, struct memory *memory) {
    struct process_info list[64];
    unsigned count = 64;
    char uuid[33];
    unsigned long long mib = 1024;
    FILE *all = fopen("/dev/nvidia-memory/.devices", "re");
    for (unsigned long i = 0; all != NULL && i < (unsigned long)device && fscanf(all, "%32s %llu\n", uuid, &mib) == 2;)
        ++i;
    if (all != NULL)
        fclose(all);
    if (nvmlDeviceGetComputeRunningProcesses_v3(device, &count, list) != SUCCESS)
        return INVALID_ARGUMENT;
    *memory = (struct memory){mib << 20, 0, 0};
    for (unsigned i = 0; i < count; ++i)
        memory->used += list[i].bytes;
    memory->free = memory->used < memory->total ? memory->total - memory->used : 0;
    return SUCCESS;
}

EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    FILE *text = fopen("/dev/nvidia-memory/.version", "re");
    if (text == NULL || fscanf(text, "%d", version) != 1)
        *version = 13000;
    if (text != NULL)
        fclose(text);
    return SUCCESS;
}
