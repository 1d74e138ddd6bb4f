/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The placeholder of a suspended unit: its main process for as long as the real one is on disk. It holds
 * what must stay (namespaces, standard streams, listening sockets), keeps the PIDs of the image from being
 * given away, and feeds the watchdog. No C library, no allocation: it may stay for months.
 *
 *   placeholder IMAGE END-SIGNAL WATCHDOG-USEC NUMBERS-FD NOTIFY-FD
 *
 * NUMBERS-FD is a file of 32-bit PIDs, NOTIFY-FD a socket connected to systemd. A number is held by a child
 * that was born with it and is dead: no parent waits for it, so nobody else can get it.
 *
 * Commands come as a queued SIGURG, so that no kill(1) is taken for one (enum HolderCommand). The name of
 * the process tells how far it is. SIGTERM, SIGINT, SIGQUIT, SIGABRT and END-SIGNAL (the unit's KillSignal=)
 * end it with success; whatever else a reload or an administrator sends does nothing.
 */
#include <asm/signal.h>
#include <asm/siginfo.h>
#include <linux/sched.h>
#include <linux/time_types.h>

#include "units/placeholder/bare.h"
#include "units/placeholder/commands.h"

enum { kBadUsage = 2, kEexist = -17, kChunk = 256, kTries = 300, kPauseNs = 10000000 };
/* Of linux/prctl.h and linux/wait.h, which do not go together with the headers above. */
enum { kPrSetName = 15, kPid = 1, kNoHang = 1, kExited = 4, kNoWait = 0x01000000, kWaitAll = 0x40000000 };

struct Holder {
    int end_signal;
    long watchdog_usec;
    int numbers_fd;
    int notify_fd;
};

static long number(const char* text) {
    long value = 0;
    for (; *text >= '0' && *text <= '9' && value < 1000000000000000; ++text)
        value = value * 10 + (*text - '0');
    return *text ? -1 : value;
}

static void say(const char* name) {
    call5(__NR_prctl, kPrSetName, (long)name, 0, 0, 0);
}

static void feed(const struct Holder* holder) {
    static const char message[] = "WATCHDOG=1";
    if (holder->watchdog_usec > 0)
        call5(__NR_write, holder->notify_fd, (long)message, sizeof(message) - 1, 0, 0);
}

/* A child with that number, dead at once. Without an exit signal it is never reaped by itself. */
static long take_number(int wanted) {
    struct clone_args args = {0};
    long child;
    args.set_tid = (unsigned long)&wanted;
    args.set_tid_size = 1;
    child = call5(__NR_clone3, (long)&args, sizeof(args), 0, 0, 0);
    if (child == 0)
        leave(0);
    return child;
}

/* A number that is in use is ours if it is that of a dead child. */
static int is_ours(int wanted) {
    siginfo_t ignored;
    return call5(__NR_waitid, kPid, wanted, (long)&ignored, kExited | kNoHang | kNoWait | kWaitAll, 0) == 0;
}

/* One pass over all numbers: how many are somebody else's. */
static long take_numbers(const struct Holder* holder) {
    static int numbers[kChunk];
    long offset = 0, missing = 0, got, i;
    while ((got = call5(__NR_pread64, holder->numbers_fd, (long)numbers, sizeof(numbers), offset, 0)) > 0) {
        for (i = 0; i < got / (long)sizeof(int); ++i)
            if (take_number(numbers[i]) == kEexist && !is_ours(numbers[i]))
                ++missing;
        offset += got;
    }
    return missing;
}

static void reap_all(void) {
    while (call5(__NR_wait4, -1, 0, kWaitAll, 0, 0) > 0)
        ;
}

/* The dead of before may wait for their parents, so it tries for three seconds; what is not to be had then
 * has another owner. */
static void hold_numbers(const struct Holder* holder) {
    struct __kernel_timespec pause = {0, kPauseNs};
    int tries;
    for (tries = 0; tries < kTries && take_numbers(holder) > 0; ++tries) {
        feed(holder);
        call5(__NR_nanosleep, (long)&pause, 0, 0, 0, 0);
    }
    say(HOLDER_HOLDS);
}

static void obey(const struct Holder* holder, int command) {
    if (command == kHolderHold)
        hold_numbers(holder);
    if (command == kHolderLeave)
        leave(0);
    if (command == kHolderGiveBack) {
        reap_all();
        say(HOLDER_GAVE_BACK);
    }
}

static int ends(const struct Holder* holder, long signal) {
    return signal == SIGTERM || signal == SIGINT || signal == SIGQUIT || signal == SIGABRT ||
           signal == holder->end_signal;
}

__attribute__((used, noreturn)) static void bare_main(long* stack) {
    char** argv = (char**)(stack + 1);
    unsigned long all = ~0UL;
    struct Holder holder;
    struct __kernel_timespec interval;
    if (stack[0] != 6)
        leave(kBadUsage);
    holder.end_signal = (int)number(argv[2]);
    holder.watchdog_usec = number(argv[3]);
    holder.numbers_fd = (int)number(argv[4]);
    holder.notify_fd = (int)number(argv[5]);
    interval.tv_sec = holder.watchdog_usec / 1000000;
    interval.tv_nsec = holder.watchdog_usec % 1000000 * 1000;
    call5(__NR_rt_sigprocmask, SIG_SETMASK, (long)&all, 0, sizeof(all), 0);
    say(HOLDER_WAITS);
    for (;;) {
        siginfo_t info;
        long got = call5(__NR_rt_sigtimedwait, (long)&all, (long)&info,
                         holder.watchdog_usec > 0 ? (long)&interval : 0, sizeof(all), 0);
        feed(&holder);
        if (got == SIGURG && info.si_code == SI_QUEUE)
            obey(&holder, info.si_int);
        else if (ends(&holder, got))
            leave(0);
    }
}
