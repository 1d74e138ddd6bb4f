/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A plugin for the tests, and an example: it uses all that plugin.h has. Its device is a folder (setting "folder").
 * A process uses the device if FOLDER/PID is there, which holds what the device knows for it. While FOLDER/PID.park
 * is there the process must keep off, and a thread of it called "device" answers by FOLDER/PID.parked.
 * Each call is noted in FOLDER/log.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "plugins/plugin.h"

struct sample {
    const struct ckptd_host *host;
    enum ckptd_purpose purpose;
    char folder[PATH_MAX / 2];
    const char *failing; /* setting "fail": this call fails */
    pid_t pids[16];
    size_t count;
    uint64_t undo;
};

static uint64_t now_usec(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static int path_of(const struct sample *self, pid_t pid, const char *suffix, char *path) {
    return snprintf(path, PATH_MAX, "%s/%d%s", self->folder, (int)pid, suffix) < PATH_MAX ? 0 : -1;
}

static int file_is_there(const struct sample *self, pid_t pid, const char *suffix) {
    char path[PATH_MAX];
    return path_of(self, pid, suffix, path) == 0 && access(path, F_OK) == 0;
}

static int note(const struct sample *self, const char *what, const struct ckptd_call *call) {
    char path[PATH_MAX + 4];
    snprintf(path, sizeof(path), "%s/log", self->folder);
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd >= 0) {
        dprintf(fd, "%s\n", what);
        close(fd);
    }
    if (self->failing != NULL && strcmp(self->failing, what) == 0) {
        call->fail(call, CKPTD_SYSTEM, EIO, "sample device", "was told to fail", NULL);
        return -1;
    }
    return 0;
}

static int fail(const struct ckptd_call *call, int code, const char *object, const char *message) {
    call->fail(call, code == ETIMEDOUT ? CKPTD_TIMEOUT : CKPTD_SYSTEM, code, object, message, NULL);
    return -1;
}

/* The device thread of a process; -1: it has none. */
static pid_t device_thread(pid_t pid) {
    char path[300];
    snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
    DIR *tasks = opendir(path);
    pid_t found = -1;
    for (struct dirent *entry; tasks != NULL && found < 0 && (entry = readdir(tasks)) != NULL;) {
        char name[16] = "";
        snprintf(path, sizeof(path), "/proc/%d/task/%.20s/comm", (int)pid, entry->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0 && read(fd, name, sizeof(name) - 1) > 0 && strcmp(name, "device\n") == 0)
            found = atoi(entry->d_name);
        if (fd >= 0)
            close(fd);
    }
    if (tasks != NULL)
        closedir(tasks);
    return found;
}

/* Has the device thread take notice of PID.park, which is there or not, while all others stand. */
static int let_it_see(struct sample *self, pid_t pid, struct ckptd_call *call) {
    const int parks = file_is_there(self, pid, ".park");
    const pid_t tid = device_thread(pid);
    if (tid < 0)
        return fail(call, ESRCH, "sample device", "the process has no device thread");
    if (self->host->run_thread(self->host->context, pid, tid) != 0)
        return errno == EBUSY ? 0 : fail(call, errno, "sample device", "cannot let the device thread run");
    int seen = 0;
    while ((seen = file_is_there(self, pid, ".parked") == parks) == 0 && now_usec() < call->deadline_usec)
        usleep(500);
    if (self->host->hold_thread(self->host->context, pid, tid, UINT64_MAX) != 0)
        return fail(call, errno, "sample device", "cannot stop the device thread");
    return seen ? 0 : fail(call, ETIMEDOUT, "sample device", "the device thread does not answer");
}

static int set_park(struct sample *self, pid_t pid, int on) {
    char path[PATH_MAX];
    if (path_of(self, pid, ".park", path) != 0)
        return -1;
    if (!on)
        return unlink(path) == 0 || errno == ENOENT ? 0 : -1;
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    return fd < 0 ? -1 : close(fd);
}

static int sample_open(const struct ckptd_host *host, enum ckptd_purpose purpose, struct ckptd_call *call,
                       void **out) {
    const char *folder = host->setting(host->context, "folder");
    if (folder == NULL || access(folder, F_OK) != 0)
        return 1;
    struct sample *self = calloc(1, sizeof(*self));
    if (self == NULL)
        return fail(call, ENOMEM, "sample device", "no memory");
    self->host = host;
    self->purpose = purpose;
    self->failing = host->setting(host->context, "fail");
    snprintf(self->folder, sizeof(self->folder), "%s", folder);
    *out = self;
    return note(self, "open", call);
}

static void sample_close(void *self) {
    note(self, "close", NULL);
    free(self);
}

static int sample_probe(void *raw, const pid_t *pids, size_t count, struct ckptd_call *call) {
    struct sample *self = raw;
    for (size_t i = 0; i < count && self->count < 16; ++i)
        if (file_is_there(self, pids[i], ""))
            self->pids[self->count++] = pids[i];
    if (note(self, "probe", call) != 0)
        return -1;
    return self->count > 0;
}

static int sample_quiesce(void *raw, const pid_t *pids, size_t count, struct ckptd_call *call) {
    struct sample *self = raw;
    (void)pids;
    (void)count;
    char record[PATH_MAX + 20];
    snprintf(record, sizeof(record), "%d %s", (int)self->pids[0], self->folder);
    self->undo = self->host->journal(self->host->context, record);
    if (self->undo == 0)
        return fail(call, EIO, "sample device", "cannot write down how to undo this");
    for (size_t i = 0; i < self->count; ++i)
        if (set_park(self, self->pids[i], 1) != 0)
            return fail(call, errno, "sample device", "cannot park it");
    return note(self, "quiesce", call);
}

static int sample_prepare(void *raw, const pid_t *pids, size_t count, struct ckptd_call *call) {
    struct sample *self = raw;
    (void)pids;
    (void)count;
    for (size_t i = 0; self->purpose == CKPTD_CHECKPOINT && i < self->count; ++i)
        if (let_it_see(self, self->pids[i], call) != 0)
            return -1;
    return note(self, "prepare", call);
}

/* The image has PID and content, a line for each process. */
static int save(struct sample *self, FILE *image) {
    for (size_t i = 0; i < self->count; ++i) {
        char path[PATH_MAX], content[64] = "";
        path_of(self, self->pids[i], "", path);
        FILE *device = fopen(path, "re");
        if (device == NULL || fgets(content, sizeof(content), device) == NULL)
            return -1;
        fclose(device);
        fprintf(image, "%d %s\n", (int)self->pids[i], content);
    }
    return 0;
}

static int load(struct sample *self, FILE *image) {
    char content[64];
    for (int pid; fscanf(image, "%d %60s\n", &pid, content) == 2;) {
        char path[PATH_MAX];
        path_of(self, pid, "", path);
        FILE *device = fopen(path, "we");
        if (device == NULL || fputs(content, device) == EOF || fclose(device) != 0)
            return -1;
        self->pids[self->count++] = pid;
    }
    return 0;
}

static int sample_transfer(void *raw, struct ckptd_call *call) {
    struct sample *self = raw;
    int fd = self->host->open_image(self->host->context, "sample-device.txt");
    FILE *image = fd < 0 ? NULL : fdopen(fd, self->purpose == CKPTD_CHECKPOINT ? "w" : "r");
    if (image == NULL)
        return fail(call, errno, "sample-device.txt", "cannot open it");
    int done = self->purpose == CKPTD_CHECKPOINT ? save(self, image) : load(self, image);
    if (fclose(image) != 0 || done != 0)
        return fail(call, errno, "sample-device.txt", "cannot move the device's content");
    call->progress(call, self->count, self->count);
    return note(self, "transfer", call);
}

static int sample_complete(void *self, struct ckptd_call *call) { return note(self, "complete", call); }

static int sample_resume(void *raw, const pid_t *pids, size_t count, struct ckptd_call *call) {
    struct sample *self = raw;
    (void)pids;
    (void)count;
    for (size_t i = 0; i < self->count; ++i)
        if (set_park(self, self->pids[i], 0) != 0 || let_it_see(self, self->pids[i], call) != 0)
            return -1;
    if (self->undo != 0)
        self->host->forget(self->host->context, self->undo);
    return note(self, "resume", call);
}

/* A copy of one thread of a threaded process: nothing but system calls. */
static int sample_in_task(void *raw, pid_t pid) {
    struct sample *self = raw;
    (void)pid;
    static const char name[] = "/in_task";
    char path[PATH_MAX + sizeof(name)];
    memcpy(path, self->folder, strlen(self->folder));
    memcpy(path + strlen(self->folder), name, sizeof(name));
    long fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (fd < 0 || syscall(SYS_write, fd, "x", 1) != 1)
        return errno;
    return syscall(SYS_close, fd) == 0 ? 0 : errno;
}

static int sample_undo(const char *record, struct ckptd_call *call) {
    struct sample self = {0};
    int pid = 0, at = 0;
    if (sscanf(record, "%d %n", &pid, &at) != 1 || at == 0)
        return fail(call, EINVAL, "sample device", "cannot read what to undo");
    snprintf(self.folder, sizeof(self.folder), "%s", record + at);
    return set_park(&self, pid, 0) == 0 ? note(&self, "undo", call) : fail(call, errno, "sample device", "cannot unpark");
}

static const char *const settings[] = {"folder", "fail", NULL};

static const struct ckptd_plugin sample = {
    .size = sizeof(sample),
    .abi = CKPTD_PLUGIN_ABI,
    .name = "sample",
    .description = "A folder that plays a device, for tests",
    .settings = settings,
    .open = sample_open,
    .close = sample_close,
    .probe = sample_probe,
    .quiesce = sample_quiesce,
    .prepare = sample_prepare,
    .transfer = sample_transfer,
    .complete = sample_complete,
    .resume = sample_resume,
    .in_task = sample_in_task,
    .undo = sample_undo,
};

const struct ckptd_plugin *ckptd_plugin_entry(void) { return &sample; }
