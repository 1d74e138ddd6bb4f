/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* NVIDIA's command cuda-checkpoint, as far as the CUDA plugin and the tests use it, on the emulated driver, or, where
   LD_LIBRARY_PATH names its folder, on a real one. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int cuInit(unsigned flags);
int cuGetErrorString(int code, const char **text);
int cuCheckpointProcessGetRestoreThreadId(int pid, int *tid);
int cuCheckpointProcessGetState(int pid, int *state);
int cuCheckpointProcessLock(int pid, void *args);
int cuCheckpointProcessCheckpoint(int pid, void *args);
int cuCheckpointProcessRestore(int pid, void *args);
int cuCheckpointProcessUnlock(int pid, void *args);

static const char *option(int argc, char **argv, const char *name) {
    for (int i = 1; i + 1 < argc; ++i)
        if (strcmp(argv[i], name) == 0)
            return argv[i + 1];
    return NULL;
}

static int has(int argc, char **argv, const char *name) {
    for (int i = 1; i < argc; ++i)
        if (strcmp(argv[i], name) == 0)
            return 1;
    return 0;
}

enum { MAX_PAIRS = 8 };

struct pair {
    unsigned char from[16], to[16];
};

/* GPU-... at `*text`, which is behind it then. */
static int read_uuid(const char **text, unsigned char *out) {
    if (strncmp(*text, "GPU-", 4) != 0)
        return 0;
    *text += 4;
    for (int i = 0; i < 16; ++i, *text += 2) {
        unsigned value = 0;
        *text += **text == '-';
        if (sscanf(*text, "%2x", &value) != 1)
            return 0;
        out[i] = (unsigned char)value;
    }
    return 1;
}

/* OLD=NEW,...; the number of pairs, or -1. */
static int read_map(const char *text, struct pair *pairs) {
    int count = 0;
    while (count < MAX_PAIRS && read_uuid(&text, pairs[count].from) && *text++ == '=' && read_uuid(&text, pairs[count].to)) {
        ++count;
        if (*text == 0)
            return count;
        ++text;
    }
    return -1;
}

static int restore(int pid, const char *map) {
    static struct pair pairs[MAX_PAIRS];
    uint64_t args[8] = {0};
    const int count = map != NULL ? read_map(map, pairs) : 0;
    if (count < 0)
        return 1;
    args[0] = count > 0 ? (uint64_t)pairs : 0;
    args[1] = (uint64_t)count;
    return cuCheckpointProcessRestore(pid, args);
}

static int act(const char *action, int pid, const char *timeout, const char *map) {
    uint64_t args[8] = {0};
    if (strcmp(action, "lock") == 0) {
        args[0] = timeout != NULL ? (uint32_t)atoi(timeout) : 0;
        return cuCheckpointProcessLock(pid, args);
    }
    if (strcmp(action, "checkpoint") == 0)
        return cuCheckpointProcessCheckpoint(pid, args);
    if (strcmp(action, "restore") == 0)
        return restore(pid, map);
    return strcmp(action, "unlock") == 0 ? cuCheckpointProcessUnlock(pid, args) : 1;
}

/* There and back again, as the command does it. */
static int toggle(int pid) {
    int state = 0, code = cuCheckpointProcessGetState(pid, &state);
    if (code != 0)
        return code;
    code = act(state == 0 ? "lock" : "restore", pid, NULL, NULL);
    return code != 0 ? code : act(state == 0 ? "checkpoint" : "unlock", pid, NULL, NULL);
}

int main(int argc, char **argv) {
    static const char *const states[] = {"running", "locked", "checkpointed", "failed"};
    const char *text = option(argc, argv, "--pid"), *action = option(argc, argv, "--action"), *name = "?";
    const int pid = text != NULL ? atoi(text) : 0;
    int value = 0, code = cuInit(0);
    if (has(argc, argv, "--help"))
        return printf("--get-state --get-restore-tid --action --timeout --device-map\n") < 0;
    if (code != 0) {
        cuGetErrorString(code, &name);
        fprintf(stderr, "Error initializing CUDA: \"%s\"\n", name);
        return 1;
    }
    if (has(argc, argv, "--get-state")) {
        if ((code = cuCheckpointProcessGetState(pid, &value)) == 0)
            puts(states[value]);
    } else if (has(argc, argv, "--get-restore-tid")) {
        if ((code = cuCheckpointProcessGetRestoreThreadId(pid, &value)) == 0)
            printf("%d\n", value);
    } else if (has(argc, argv, "--toggle")) {
        code = toggle(pid);
    } else if (action != NULL)
        code = act(action, pid, option(argc, argv, "--timeout"), option(argc, argv, "--device-map"));
    if (code == 0)
        return 0;
    cuGetErrorString(code, &name);
    fprintf(stderr, "Could not %s on process ID %d: \"%s\"\n", action != NULL ? action : "look", pid, name);
    return 1;
}
