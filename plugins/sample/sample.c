/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A plugin for the tests, and an example: it uses all that plugin.h has. Its device is a folder (setting "folder").
 * A process uses the device if FOLDER/PID is there, which holds what the device knows for it. While FOLDER/PID.park
 * is there the process must keep off, and a thread of it called "device" answers by FOLDER/PID.parked.
 * Each call is noted in FOLDER/log.
 *
 * Of what the processes have open, masters of terminals are its, with the size of the terminal for their state; stream
 * sockets that are connected to FOLDER/peer, which are connected anew, after the terminals (of any process); and
 * mappings of files FOLDER/NAME.memory. These come back as mappings of NAME.memory.new, a page further on in the file,
 * which transfer() fills while the processes rebuild the rest of their memory.
 *
 * A restore asks which files the image has, and leaves their names in FOLDER/images; each restored task writes its number
 * to FOLDER/in_task.
 *
 * With the setting "undo-time" undo() takes so many milliseconds. With "waits" for "transfer" that moves nothing before
 * FOLDER/go is there, and fails after 20 seconds.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "plugins/plugin.h"

enum { MOST = 16, PAGE = 4096 };

struct owned_file {
    uint32_t id;
    int is_terminal;
    unsigned short rows, columns;
};

/* Also what a task tells the worker of it, with a descriptor. */
struct owned_mapping {
    uint64_t start, size, offset;
};

struct sample {
    const struct ckptd_host *host;
    enum ckptd_purpose purpose;
    char folder[PATH_MAX / 2];
    const char *failing; /* setting "fail": this call fails */
    pid_t pids[16];
    size_t count;
    uint64_t undo;
    unsigned undo_ms;
    int fails_in_task;
    int waits; /* setting "transfer" */
    struct owned_file files[MOST];
    size_t file_count;
    int has_waited;
    struct owned_mapping mappings[MOST];
    char paths[MOST][300]; /* of the mappings */
    size_t mapping_count;
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

/* What a process calls itself. */
static pid_t own_number(pid_t pid) {
    char path[60], line[200];
    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    FILE *status = fopen(path, "re");
    pid_t number = pid;
    while (status != NULL && fgets(line, sizeof(line), status) != NULL)
        if (strncmp(line, "NSpid:", 6) == 0)
            number = atoi(strrchr(line, '\t') + 1);
    if (status != NULL)
        fclose(status);
    return number;
}

/* Which of `pids` calls itself so. */
static pid_t number_here(pid_t number, const pid_t *pids, size_t count) {
    for (size_t i = 0; i < count; ++i)
        if (own_number(pids[i]) == number)
            return pids[i];
    return number;
}

/* Has the device thread of process `here` take notice of PID.park, which is there or not, while all others stand. */
static int let_it_see(struct sample *self, pid_t pid, pid_t here, struct ckptd_call *call) {
    const int parks = file_is_there(self, pid, ".park");
    const pid_t tid = device_thread(here);
    if (tid < 0)
        return fail(call, ESRCH, "sample device", "the process has no device thread");
    if (self->host->run_thread(self->host->context, here, tid) != 0)
        return errno == EBUSY ? 0 : fail(call, errno, "sample device", "cannot let the device thread run");
    int seen = 0;
    while ((seen = file_is_there(self, pid, ".parked") == parks) == 0 && now_usec() < call->deadline_usec)
        usleep(500);
    if (self->host->hold_thread(self->host->context, here, tid, UINT64_MAX) != 0)
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
    self->fails_in_task = self->failing != NULL && strcmp(self->failing, "in_task") == 0;
    const char *undo_ms = host->setting(host->context, "undo-time");
    self->undo_ms = undo_ms == NULL ? 0 : (unsigned)strtoul(undo_ms, NULL, 10);
    const char *transfer = host->setting(host->context, "transfer");
    self->waits = transfer != NULL && strcmp(transfer, "waits") == 0;
    snprintf(self->folder, sizeof(self->folder), "%s", folder);
    *out = self;
    return note(self, "open", call);
}

static void sample_close(void *self) {
    note(self, "close", NULL);
    free(self);
}

struct listing {
    FILE *names;
    int has_content;
};

static void take_name(void *out, const char *name) {
    struct listing *listing = out;
    fprintf(listing->names, "%s\n", name);
    if (strcmp(name, "sample-device.txt") == 0)
        listing->has_content = 1;
}

/* An image without what the device knew is told before anything is made. */
static int check_images(const struct sample *self, const struct ckptd_call *call) {
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/images", self->folder);
    struct listing listing = {.names = fopen(path, "we")};
    if (listing.names == NULL)
        return fail(call, errno, "sample device", "cannot write down which files there are");
    const int done = self->host->list_images(self->host->context, take_name, &listing);
    const int code = errno;
    if (fclose(listing.names) != 0 || done != 0)
        return fail(call, code, "sample device", "cannot tell which files there are");
    return listing.has_content ? 0 : fail(call, ENOENT, "sample-device.txt", "is not in the image");
}

static int sample_probe(void *raw, const pid_t *pids, size_t count, struct ckptd_call *call) {
    struct sample *self = raw;
    for (size_t i = 0; i < count && self->count < 16; ++i)
        if (file_is_there(self, pids[i], ""))
            self->pids[self->count++] = pids[i];
    if (note(self, "probe", call) != 0 || (self->purpose == CKPTD_RESTORE && check_images(self, call) != 0))
        return -1;
    return self->count > 0;
}

static int sample_quiesce(void *raw, const pid_t *pids, size_t count, struct ckptd_call *call) {
    struct sample *self = raw;
    (void)pids;
    (void)count;
    char record[PATH_MAX + 40];
    snprintf(record, sizeof(record), "%d %u %s", (int)self->pids[0], self->undo_ms, self->folder);
    self->undo = self->host->journal(self->host->context, record);
    if (self->undo == 0)
        return fail(call, EIO, "sample device", "cannot write down how to undo this");
    for (size_t i = 0; i < self->count; ++i)
        if (set_park(self, self->pids[i], 1) != 0)
            return fail(call, errno, "sample device", "cannot park it");
    return note(self, "quiesce", call);
}

/* The image has a line for each file. */
static int save_files(const struct sample *self) {
    int fd = self->host->open_image(self->host->context, "sample-files.txt");
    for (size_t i = 0; fd >= 0 && i < self->file_count; ++i)
        dprintf(fd, "%u %d %hu %hu\n", self->files[i].id, self->files[i].is_terminal, self->files[i].rows,
                self->files[i].columns);
    return fd < 0 ? -1 : close(fd);
}

static int load_files(struct sample *self) {
    int fd = self->host->open_image(self->host->context, "sample-files.txt");
    FILE *image = fd < 0 ? NULL : fdopen(fd, "r");
    if (image == NULL)
        return -1;
    struct owned_file file;
    while (self->file_count < MOST &&
           fscanf(image, "%u %d %hu %hu", &file.id, &file.is_terminal, &file.rows, &file.columns) == 4)
        self->files[self->file_count++] = file;
    return fclose(image);
}

static int sample_prepare(void *raw, const pid_t *pids, size_t count, struct ckptd_call *call) {
    struct sample *self = raw;
    for (size_t i = 0; self->purpose == CKPTD_CHECKPOINT && i < self->count; ++i)
        if (let_it_see(self, self->pids[i], number_here(self->pids[i], pids, count), call) != 0)
            return -1;
    if (self->purpose == CKPTD_RESTORE && load_files(self) != 0)
        return fail(call, errno, "sample-files.txt", "cannot read it");
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

static int is_terminal_master(int fd) {
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(5, 2);
}

static int peer_path(const struct sample *self, struct sockaddr_un *peer) {
    peer->sun_family = AF_UNIX;
    return snprintf(peer->sun_path, sizeof(peer->sun_path), "%s/peer", self->folder) < (int)sizeof(peer->sun_path) ? 0 : -1;
}

static int is_connected_to_us(const struct sample *self, int fd) {
    struct sockaddr_un own, peer = {0};
    socklen_t size = sizeof(peer) - 1;
    return peer_path(self, &own) == 0 && getpeername(fd, (struct sockaddr *)&peer, &size) == 0 &&
           peer.sun_family == AF_UNIX && strcmp(peer.sun_path, own.sun_path) == 0;
}

static int sample_dump_file(void *raw, pid_t pid, int fd, uint32_t id, struct ckptd_call *call) {
    struct sample *self = raw;
    (void)pid;
    struct winsize size = {0};
    const int is_terminal = is_terminal_master(fd);
    if (!is_terminal && !is_connected_to_us(self, fd))
        return 1;
    if (self->file_count == MOST || (is_terminal && ioctl(fd, TIOCGWINSZ, &size) != 0))
        return fail(call, errno, "sample device", "cannot keep a file");
    self->files[self->file_count++] = (struct owned_file){id, is_terminal, size.ws_row, size.ws_col};
    return note(self, "dump_file", call);
}

static int sample_handle_vma(void *raw, pid_t pid, const struct ckptd_vma *vma, struct ckptd_call *call) {
    struct sample *self = raw;
    (void)pid;
    const size_t length = strlen(vma->path), folder = strlen(self->folder);
    if (length < 7 || strncmp(vma->path, self->folder, folder) != 0 || strcmp(vma->path + length - 7, ".memory") != 0)
        return 1;
    struct stat st;
    if (fstat(vma->fd, &st) != 0 || !S_ISREG(st.st_mode) || self->mapping_count == MOST || length >= sizeof(self->paths[0]))
        return fail(call, errno, "sample device", "cannot keep a mapping");
    memcpy(self->paths[self->mapping_count], vma->path, length + 1);
    self->mappings[self->mapping_count++] = (struct owned_mapping){vma->start, vma->end - vma->start, vma->offset};
    return note(self, "handle_vma", call);
}

static off_t size_of(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 ? st.st_size : 0;
}

static off_t count_terminals(const struct sample *self) {
    off_t count = 0;
    for (size_t i = 0; i < self->file_count; ++i)
        count += self->files[i].is_terminal;
    return count;
}

/* Nothing but system calls, as in all that runs in the task. */
static int sample_restore_file(void *raw, pid_t pid, uint32_t id) {
    struct sample *self = raw;
    (void)pid;
    static const char name[] = "/terminals";
    char made[PATH_MAX];
    memcpy(made, self->folder, strlen(self->folder));
    memcpy(made + strlen(self->folder), name, sizeof(name));
    const struct owned_file *file = self->files;
    while (file < self->files + self->file_count && file->id != id)
        ++file;
    if (file == self->files + self->file_count)
        return -ENOENT;
    if (self->failing != NULL && strcmp(self->failing, "restore_file") == 0)
        return -EIO;
    if (self->failing != NULL && strcmp(self->failing, "restore_file again") == 0)
        return -EAGAIN;
    if (!file->is_terminal) {
        struct sockaddr_un peer = {0};
        if (count_terminals(self) > size_of(made) || !self->has_waited) {
            self->has_waited = 1; /* also where all are there by chance */
            return -EAGAIN;
        }
        const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        memcpy(made + strlen(self->folder), "/peer", sizeof("/peer"));
        peer.sun_family = AF_UNIX;
        memcpy(peer.sun_path, made, strlen(made));
        return fd < 0 || connect(fd, (struct sockaddr *)&peer, sizeof(peer)) != 0 ? -errno : fd;
    }
    const struct winsize size = {.ws_row = file->rows, .ws_col = file->columns};
    const int fd = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    const int note = open(made, O_WRONLY | O_CREAT | O_APPEND, 0600); /* left to the engine to close */
    return fd < 0 || write(note, "x", 1) != 1 || ioctl(fd, TIOCSWINSZ, &size) != 0 ? -errno : fd;
}

static int sample_update_vma(void *raw, pid_t pid, struct ckptd_vma *vma) {
    struct sample *self = raw;
    (void)pid;
    char path[PATH_MAX];
    const size_t length = strlen(vma->path);
    if (length + sizeof(".new") > sizeof(path))
        return -ENAMETOOLONG;
    memcpy(path, vma->path, length);
    memcpy(path + length, ".new", sizeof(".new"));
    const struct owned_mapping mapping = {vma->start, vma->end - vma->start, vma->offset + PAGE};
    vma->offset = mapping.offset;
    vma->fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (vma->fd < 0 || ftruncate(vma->fd, (off_t)(mapping.offset + mapping.size)) != 0)
        return -errno;
    if (self->failing != NULL && strcmp(self->failing, "update_vma") == 0)
        return -EIO;
    return self->host->send(self->host->context, &mapping, sizeof(mapping), &vma->fd, 1) == 0 ? 0 : -errno;
}

static void image_of(const struct owned_mapping *mapping, char *name, size_t room) {
    snprintf(name, room, "sample-pages-%llx.img", (unsigned long long)mapping->start);
}

static int copy_pages(int from, uint64_t offset, int to, uint64_t size) {
    char page[PAGE];
    for (uint64_t done = 0; done < size; done += PAGE)
        if (pread(from, page, PAGE, (off_t)(offset + done)) != PAGE || pwrite(to, page, PAGE, (off_t)done) != PAGE)
            return -1;
    return 0;
}

static int save_memory(const struct sample *self) {
    for (size_t i = 0; i < self->mapping_count; ++i) {
        const struct owned_mapping *mapping = &self->mappings[i];
        char name[60];
        image_of(mapping, name, sizeof(name));
        const int image = self->host->open_image(self->host->context, name);
        const int memory = open(self->paths[i], O_RDONLY | O_CLOEXEC);
        const int done = image < 0 || memory < 0 ? -1 : copy_pages(memory, mapping->offset, image, mapping->size);
        close(image);
        close(memory);
        if (done != 0)
            return -1;
    }
    return 0;
}

/* A page at a time, which is little. */
static int read_pages(const struct sample *self, const struct owned_mapping *mapping, int to) {
    _Alignas(PAGE) static char room[2 * PAGE];
    char name[60];
    image_of(mapping, name, sizeof(name));
    for (uint64_t done = 0; done < mapping->size; done += PAGE) {
        void *contents = NULL;
        if (self->host->read_contents(self->host->context, name, done, PAGE, room, &contents) != 0 ||
            pwrite(to, contents, PAGE, (off_t)(mapping->offset + done)) != PAGE)
            return -1;
    }
    return 0;
}

/* The tasks say which files they have made, and go on meanwhile. */
static int load_memory(const struct sample *self, const struct ckptd_call *call) {
    struct owned_mapping mapping;
    for (;;) {
        int memory = -1;
        size_t count = 1;
        const ssize_t got = self->host->receive(self->host->context, &mapping, sizeof(mapping), &memory, &count,
                                                call->deadline_usec);
        if (got == 0)
            return 0;
        const int done = got == sizeof(mapping) && count == 1 ? read_pages(self, &mapping, memory) : -1;
        close(memory);
        if (done != 0)
            return -1;
    }
}

static int is_stopped(const struct ckptd_call *call) {
    struct pollfd entry = {.fd = call->cancel_fd, .events = POLLIN};
    return call->cancel_fd >= 0 && poll(&entry, 1, 0) > 0;
}

/* 0: it may begin. */
static int wait_to_go(const struct sample *self, const struct ckptd_call *call) {
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/go", self->folder);
    note(self, "transfer waits", NULL);
    for (uint64_t end = now_usec() + 20000000; access(path, F_OK) != 0; usleep(1000)) {
        if (is_stopped(call)) {
            note(self, "transfer is stopped", NULL);
            return fail(call, ECANCELED, "sample device", "nobody wants it");
        }
        if (now_usec() >= end)
            return fail(call, ETIME, "sample device", "was to wait, and waited in vain");
    }
    return 0;
}

static int sample_transfer(void *raw, struct ckptd_call *call) {
    struct sample *self = raw;
    if (self->waits && wait_to_go(self, call) != 0)
        return -1;
    int fd = self->host->open_image(self->host->context, "sample-device.txt");
    FILE *image = fd < 0 ? NULL : fdopen(fd, self->purpose == CKPTD_CHECKPOINT ? "w" : "r");
    if (image == NULL)
        return fail(call, errno, "sample-device.txt", "cannot open it");
    int done = self->purpose == CKPTD_CHECKPOINT ? save(self, image) : load(self, image);
    if (fclose(image) != 0 || done != 0)
        return fail(call, errno, "sample-device.txt", "cannot move the device's content");
    if ((self->purpose == CKPTD_CHECKPOINT ? save_memory(self) : load_memory(self, call)) != 0)
        return fail(call, errno, "sample device", "cannot move what is mapped");
    call->progress(call, self->count, self->count);
    return note(self, "transfer", call);
}

static int sample_complete(void *raw, struct ckptd_call *call) {
    struct sample *self = raw;
    if (self->purpose == CKPTD_CHECKPOINT && save_files(self) != 0)
        return fail(call, errno, "sample-files.txt", "cannot write it");
    return note(self, "complete", call);
}

static int sample_resume(void *raw, const pid_t *pids, size_t count, struct ckptd_call *call) {
    struct sample *self = raw;
    if (is_stopped(call))
        return fail(call, ECANCELED, "sample device", "is not to be resumed");
    for (size_t i = 0; i < self->count; ++i)
        if (set_park(self, self->pids[i], 0) != 0 ||
            let_it_see(self, self->pids[i], number_here(self->pids[i], pids, count), call) != 0)
            return -1;
    if (self->undo != 0)
        self->host->forget(self->host->context, self->undo);
    return note(self, "resume", call);
}

/* The place where they begin, before `end`, where a line ends. */
static char *put_digits(long number, char *end) {
    for (*--end = '\n'; number > 0; number /= 10)
        *--end = (char)('0' + number % 10);
    return end;
}

/* A copy of one thread of a threaded process: nothing but system calls. */
static int sample_in_task(void *raw, pid_t pid) {
    struct sample *self = raw;
    const long own = syscall(SYS_getpid);
    if (self->fails_in_task)
        return EIO;
    if (own != pid)
        return ESRCH;
    static const char name[] = "/in_task";
    char line[24], *digits = put_digits(own, line + sizeof(line));
    const long length = line + sizeof(line) - digits;
    char path[PATH_MAX + sizeof(name)];
    memcpy(path, self->folder, strlen(self->folder));
    memcpy(path + strlen(self->folder), name, sizeof(name));
    long fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (fd < 0 || syscall(SYS_write, fd, digits, length) != length)
        return errno;
    return syscall(SYS_close, fd) == 0 ? 0 : errno;
}

static int sample_undo(const char *record, struct ckptd_call *call) {
    struct sample self = {0};
    int pid = 0, at = 0;
    if (sscanf(record, "%d %u %n", &pid, &self.undo_ms, &at) != 2 || at == 0)
        return fail(call, EINVAL, "sample device", "cannot read what to undo");
    for (uint64_t end = now_usec() + 1000ull * self.undo_ms; now_usec() < end; usleep(1000))
        if (now_usec() >= call->deadline_usec)
            return fail(call, ETIMEDOUT, "sample device", "had too little time");
    snprintf(self.folder, sizeof(self.folder), "%s", record + at);
    return set_park(&self, pid, 0) == 0 ? note(&self, "undo", call) : fail(call, errno, "sample device", "cannot unpark");
}

/* With time to spare: what is said here is what it gets. */
static uint64_t sample_undo_usec(const char *record) {
    unsigned undo_ms = 0;
    return sscanf(record, "%*d %u", &undo_ms) == 1 ? 1000ull * undo_ms + 60000000 : 0;
}

static const char *const settings[] = {"folder", "fail", "undo-time", "transfer", NULL};

#ifdef SAMPLE_OLDER
#define SIZE offsetof(struct ckptd_plugin, undo_usec)
#else
#define SIZE sizeof(struct ckptd_plugin)
#endif

static const struct ckptd_plugin sample = {
    .size = SIZE,
    .abi = CKPTD_PLUGIN_ABI,
    .needs = CKPTD_NEEDS_CONTENTS,
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
    .dump_file = sample_dump_file,
    .handle_vma = sample_handle_vma,
    .restore_file = sample_restore_file,
    .update_vma = sample_update_vma,
    .undo_usec = sample_undo_usec,
};

const struct ckptd_plugin *ckptd_plugin_entry(void) { return &sample; }
