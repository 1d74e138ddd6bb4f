/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * PID 1 of the namespace into which a unit is restored whose PIDs others have: it reaps orphans, and leaves
 * when it is alone. No C library, no allocation: it stays for as long as the unit runs.
 *
 * Descriptor 3 is a stream from the worker: 32-bit PIDs of those that are no children of ours, which is why the
 * kernel tells us of their end in no other way, then a zero. If it ends without the zero the worker is dead, or
 * has given up.
 *
 * No signal ends it but SIGKILL from outside, and that ends the unit: the namespace dies with its first process.
 * So when the unit is stopped it is the last to go, as soon as the others are gone.
 */
#include <asm/signal.h>
#include <linux/poll.h>
#include <linux/time_types.h>

#include "units/placeholder/bare.h"

enum { kLifeline = 3, kFirstPidfd = 4, kPauseNs = 5000000, kEintr = -4, kEsrch = -3, kAbandoned = 1 };
enum { kPrSetName = 15, kWaitAll = 0x40000000 }; /* of linux/prctl.h and linux/wait.h */

/* The handler is called by nobody: an ignored SIGCHLD lets the kernel reap our children (wait(2)). */
static void reap_by_itself(void) {
    struct sigaction ignore = {0};
    ignore.sa_handler = SIG_IGN;
    call5(__NR_rt_sigaction, SIGCHLD, (long)&ignore, 0, sizeof(ignore.sa_mask), 0);
}

static int next_number(void) {
    int number = 0;
    long got;
    do
        got = call5(__NR_read, kLifeline, (long)&number, sizeof(number), 0, 0);
    while (got == kEintr);
    if (got != sizeof(number))
        leave(kAbandoned);
    return number;
}

/* They get the lowest numbers that are free, one after the other. Returns the first that is none of them. */
static int open_pidfds(void) {
    int number, last = kFirstPidfd;
    while ((number = next_number()) != 0) {
        long opened = call5(__NR_pidfd_open, number, 0, 0, 0, 0);
        if (opened >= 0)
            last = (int)opened + 1;
    }
    call5(__NR_close, kLifeline, 0, 0, 0, 0);
    return last;
}

static void wait_end_of(int pidfd) {
    struct pollfd end = {pidfd, POLLIN, 0};
    while (call5(__NR_ppoll, (long)&end, 1, 0, 0, 0) == kEintr)
        ;
    call5(__NR_close, pidfd, 0, 0, 0, 0);
}

__attribute__((used, noreturn)) static void bare_main(long* stack) {
    unsigned long all = ~0UL;
    struct __kernel_timespec pause = {0, kPauseNs};
    int pidfd, last;
    (void)stack;
    call5(__NR_rt_sigprocmask, SIG_SETMASK, (long)&all, 0, sizeof(all), 0);
    call5(__NR_prctl, kPrSetName, (long)"pid-init", 0, 0, 0);
    reap_by_itself();
    last = open_pidfds();
    for (pidfd = kFirstPidfd; pidfd < last; ++pidfd)
        wait_end_of(pidfd);
    /* All that live now descend from those, so they are our children or theirs: this ends with the last. */
    call5(__NR_wait4, -1, 0, kWaitAll, 0, 0);
    /* Without a pidfd of somebody (too many of them) we have to look. */
    while (call5(__NR_kill, -1, 0, 0, 0, 0) != kEsrch)
        call5(__NR_nanosleep, (long)&pause, 0, 0, 0, 0);
    leave(0);
}
