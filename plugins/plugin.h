/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The interface between checkpointd and its plugins, which carry the state of devices that the kernel knows
 * nothing of. A plugin is a shared object NAME.so in the plugin directory (see checkpointd-plugin.pc) that
 * exports ckptd_plugin_entry(). It is loaded by the worker of one job, and lives as long as that job.
 *
 * Versions: CKPTD_PLUGIN_ABI changes when something that was there changes its meaning. What is added comes at
 * the end of a structure; `size` says how much of it the other side knows, and what lies beyond is not read.
 *
 * A checkpoint, in order, and who runs it ("tracer": the thread of the worker that traces the tasks, for drivers
 * that accept only it; every call is made there but transfer() and those that run "in the task"):
 *
 *   open      the tasks run; nothing is known of them. 1: there is no device here, the plugin is left out
 *   probe     the tasks run. Which of them use the device, and what of that cannot be carried (fail() once for
 *             each). 0: none of them; the plugin is left out, and the image says so
 *   quiesce   the tasks run. Stops their use of the device; what a task does with it from here on waits
 *   prepare   every task stands in ptrace-stop, and goes on doing so but for run_thread(). Brings the device's state
 *             to where transfer() or the dump of ordinary memory finds it. Descriptors, mappings and memory of the
 *             tasks are looked at afterwards
 *   handle_vma, dump_file
 *             process by process, all of its mappings first. What a plugin takes is no concern of the engine's any
 *             more; what none takes is carried by the engine, or said to be in the way. A failure with
 *             CKPTD_UNSUPPORTED is answered together with all else that cannot be carried
 *   transfer  in a thread of its own beside the dump of memory: bulk data, to files of the image. The tasks stand until
 *             it has returned, also after a failure elsewhere: then cancel_fd is readable, and it returns at once
 *   complete  the data are there
 *   resume    unless the tasks end: they stand still yet, and are about to go on as if nothing had happened. Also
 *             after a failure, from whatever state there is; if quiesce() failed or the tasks could not be
 *             stopped they run, and run_thread() answers that by an error
 *   close
 *
 * A restore:
 *
 *   open      1: there is no device here, which is an error if the image needs the plugin
 *   probe     no task exists (count 0). Can this image be restored here? fail() once for each thing that is missing
 *   prepare   before the first task is made: what they, or transfer(), will need
 *   in_task, restore_file, update_vma
 *             in each restored task, in this order, before its memory is replaced: see "In the task"
 *   transfer  in a thread of its own, beside them and while the tasks rebuild their memory
 *   complete  after transfer() has ended; all tasks stand, with their memory
 *   resume    the tasks stand still, and are about to run: their devices come alive. A failure ends the restore
 *   close
 *
 * In the task: in the restored process itself, forked from the threaded worker, of which it has all memory (`self`
 * too) as a copy; with its old PID in the namespaces of its unit, as root, its descriptors in place, its old memory not
 * there yet. No allocation, no locks, no stdio, nothing of the C library that is not async-signal-safe: system calls. Of
 * `host` only send() may be called. `pid` is the number that the process has for itself (the last of NSpid in
 * /proc/PID/status of the checkpointed one). All tasks do this at the same time. Descriptors that the plugin opens here
 * have numbers that the program does not use; they stay open until the mappings are made, and are closed then.
 *
 * The worker may die at any instant. What must be undone then is told to journal() before it is done. undo() is called for
 * all that stands there when the job has ended: in another process where the worker died, else in the worker, after close();
 * with the tasks running (of a checkpoint) or dead (of a restore).
 */
#ifndef CHECKPOINTD_PLUGIN_H
#define CHECKPOINTD_PLUGIN_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CKPTD_PLUGIN_ABI 1u

enum ckptd_purpose { CKPTD_CHECKPOINT = 1, CKPTD_RESTORE = 2 };

/* What kind of trouble it is: whoever asked for the job is told by the name of the error, org.checkpointd1.Error.KIND. */
enum ckptd_trouble {
    CKPTD_SYSTEM = 0,      /* a call failed; errno_code says how */
    CKPTD_UNSUPPORTED = 1, /* something that cannot be carried */
    CKPTD_BAD_INPUT = 2,   /* a setting that cannot be right */
    CKPTD_BAD_IMAGE = 3,
    CKPTD_CONFLICT = 4,    /* something is in the way, perhaps not for long */
    CKPTD_TIMEOUT = 5,
    CKPTD_GONE = 6,        /* the task died meanwhile */
};

/* A mapping of a file, in a task. */
struct ckptd_vma {
    uint32_t size;
    /* handle_vma: O_PATH of what is mapped, borrowed. update_vma: out, what to map; open until that is done */
    int fd;
    uint64_t start, end;
    uint64_t offset;      /* bytes into the file. update_vma: in, as it was; out, as it is here */
    uint32_t prot, flags; /* mmap(2) */
    const char *path;     /* as /proc/PID/maps had it at the checkpoint */
};

/* One call of the plugin. Borrowed: valid until it returns. */
struct ckptd_call {
    uint32_t size;
    uint32_t reserved;
    /*
     * CLOCK_MONOTONIC; UINT64_MAX: none, as transfer() of a restore has, which cancel_fd ends when complete() would be late.
     * A call that returns later has failed, but for resume() of a checkpoint and undo(); five seconds later still the process
     * that makes it is ended, and what stands in the journal undone.
     */
    uint64_t deadline_usec;
    int cancel_fd;          /* readable when nobody wants the result any more: the job was cancelled, or has failed. To be polled,
                               not read. -1: that cannot happen; resume() of a checkpoint comes after such an end as well */
    int reserved2;
    void *context;
    /*
     * Says what went wrong, before a failure is returned; several times where there are several reasons. Strings are
     * copied; `object` ("pid 12", "GPU-1b2c") and `message` are needed, `remedy` may be NULL.
     */
    void (*fail)(const struct ckptd_call *call, enum ckptd_trouble trouble, int errno_code, const char *object,
                 const char *message, const char *remedy);
    /* Bytes moved so far. From any thread. */
    void (*progress)(const struct ckptd_call *call, uint64_t done, uint64_t total);
};

/* What the host does for a plugin. Valid from open() to close(), in the tracer's thread unless it says more. */
struct ckptd_host {
    uint32_t size;
    uint32_t abi;
    void *context;
    /* What the policy says under plugins.NAME; NULL where it says nothing. Any thread. */
    const char *(*setting)(void *context, const char *name);
    /*
     * A file of the image: created (O_CREAT | O_EXCL) by a checkpoint, opened for reading by a restore. The caller
     * owns the descriptor. -1 and errno on failure. Names must begin with the plugin's or, where CRIU's plugin for
     * the same device has such files, with "gpu-". Those called NAME-pages-... hold what is nothing but copied: they are
     * checked for damage while a restore goes on, all others before. Any thread.
     */
    int (*open_image)(void *context, const char *name);
    /*
     * Has undo(record) called if the job dies; 0 if that could not be written down, and then the step may not be
     * taken. forget(): the step is undone, or has come to its end.
     */
    uint64_t (*journal)(void *context, const char *record);
    int (*forget)(void *context, uint64_t id);
    /*
     * Lets one thread of a held task run, with all its signals blocked but those of its own faults; hold_thread() stops it
     * again, as if it had stood all the time. 0, or -1 with errno: ESRCH it is gone, EBUSY tasks do not stand, ETIMEDOUT
     * it does not stop. A SIGCONT or SIGSTOP stops one that runs: run_thread() for it, every few milliseconds while it is
     * waited for, has it go on.
     * It must do its work without a lock that threads which stand may hold, such as that of an interpreter.
     */
    int (*run_thread)(void *context, pid_t pid, pid_t tid);
    int (*hold_thread)(void *context, pid_t pid, pid_t tid, uint64_t deadline_usec);
    /*
     * In the task: a message to the plugin's transfer() in the worker, which gets those of one task in their order. 1 byte
     * to 60 KiB, at most 250 descriptors; the sender's stay its own. Waits while too much is under way. 0, or -1 with
     * errno: EPIPE nobody receives any more, ENOTCONN there is no transfer(). Async-signal-safe.
     */
    int (*send)(void *context, const void *data, size_t size, const int *fds, size_t count);
    /*
     * In the worker, any thread, during transfer() of a restore: the next message. Its size; 0: no task can send any more;
     * -1 with errno: ETIMEDOUT, ECANCELED (the restore failed meanwhile), EMSGSIZE (no room, it is lost), EMFILE.
     * *count: room in `fds`, out: how many there are. They are the caller's, close-on-exec.
     */
    ssize_t (*receive)(void *context, void *data, size_t size, int *fds, size_t *count, uint64_t deadline_usec);
    /* Calls `take` with the name of each file of the image that begins with the plugin's. 0, or -1 with errno. Any thread. */
    int (*list_images)(void *context, void (*take)(void *out, const char *name), void *out);
    /*
     * In the worker, any thread, of a restore (CKPTD_NEEDS_CONTENTS): reads `size` bytes of the file `name` of the image, from
     * `offset` on. `room` begins at a page of 4 KiB and is as large as the pages of the file that they are on; *contents is
     * where in it they are. They are read past the page cache if they are not in that, and checked against the image's digests:
     * a file that is read in the order of its bytes is read but once. 0, or -1 with errno: EBADMSG they are not what was
     * written, ENODATA the file ends before, EINVAL as open_image().
     */
    int (*read_contents)(void *context, const char *name, uint64_t offset, uint64_t size, void *room, void **contents);
};

/* read_contents() of the host; by that alone the plugin reads its files that are called NAME-pages-... */
#define CKPTD_NEEDS_CONTENTS 1u

struct ckptd_plugin {
    uint32_t size; /* sizeof(struct ckptd_plugin) */
    uint32_t abi;  /* CKPTD_PLUGIN_ABI */
    /* CKPTD_NEEDS_...: of the host. A host that does not know one refuses the plugin. */
    uint64_t needs;
    const char *name; /* as the file's, without .so */
    const char *description;
    const char *const *settings; /* names that the policy may set; ends with NULL */

    /*
     * 0 success, -1 failure (said by call->fail()), and for open(), probe() what stands above. `pids` are PIDs of
     * this machine. Members may be NULL where there is nothing to do, but for open() and close().
     */
    int (*open)(const struct ckptd_host *host, enum ckptd_purpose purpose, struct ckptd_call *call, void **self);
    void (*close)(void *self);
    int (*probe)(void *self, const pid_t *pids, size_t count, struct ckptd_call *call);
    int (*quiesce)(void *self, const pid_t *pids, size_t count, struct ckptd_call *call);
    int (*prepare)(void *self, const pid_t *pids, size_t count, struct ckptd_call *call);
    int (*transfer)(void *self, struct ckptd_call *call);
    int (*complete)(void *self, struct ckptd_call *call);
    int (*resume)(void *self, const pid_t *pids, size_t count, struct ckptd_call *call);
    /* In the task: 0, or an errno value. */
    int (*in_task)(void *self, pid_t pid);
    /* Undoes what a dead job told journal(). Idempotent; the PIDs in the record may have new owners by now. */
    int (*undo)(const char *record, struct ckptd_call *call);

    /*
     * Of a checkpoint, asked once about every open file of whatever kind that its caller does not call external, before the
     * engine looks at it. `pid` has it open (and perhaps others too), `fd` is a copy of its descriptor in the worker:
     * borrowed, with offset and flags in common. 0: it is the plugin's, and what is needed to make it again is in the
     * image by complete(), under `id`. Offset, flags and the receiver of its signals are recorded by the engine. 1: not
     * mine. -1: failed.
     */
    int (*dump_file)(void *self, pid_t pid, int fd, uint32_t id, struct ckptd_call *call);
    /*
     * Of a checkpoint, asked about every mapping of a file. 0: it is the plugin's. Its content is not saved, pages that a
     * private mapping has of its own neither; address, protection, flags, offset and path are. 1: not mine. -1: failed.
     */
    int (*handle_vma)(void *self, pid_t pid, const struct ckptd_vma *vma, struct ckptd_call *call);
    /*
     * In the task, for each file that dump_file() took there, `id` as then. A descriptor, which goes to its numbers in
     * all tasks that have the file, or a negative errno value. -EAGAIN: ask again when other files, of this task or of
     * others, are there; -ENOTSUP: not mine (in an image that does not say whose the file is).
     */
    int (*restore_file)(void *self, pid_t pid, uint32_t id);
    /*
     * In the task, for each mapping that handle_vma() took, after all files of the task. 0: `fd` and `offset` say what to
     * map; 1: not mine, or a negative errno value. It is mapped when the old memory is replaced, where it was, with `prot`
     * and `flags` as they were.
     */
    int (*update_vma)(void *self, pid_t pid, struct ckptd_vma *vma);

    /*
     * How long undo(record) may take at most, in microseconds, from what the record says (bytes that are to be moved back,
     * timeouts of the policy); UINT64_MAX: however long it takes. It gets no less than a minute, as it does where this is
     * NULL, and nobody ends the process that undoes before that. resume() of a checkpoint has as long as all that is in the
     * journal, and no less than five minutes. Asked in any process and thread, open() or not.
     */
    uint64_t (*undo_usec)(const char *record);
};

/* The one symbol of a plugin. The table is constant and outlives everything. */
const struct ckptd_plugin *ckptd_plugin_entry(void);

#ifdef __cplusplus
}
#endif
#endif
