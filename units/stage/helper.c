/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The stage helper: holds a unit's place, with all that systemd has made for it, till the restored
 * processes have taken it over. Runs under the unit's own sandbox, hence no C library, no allocation, and
 * four system calls only: rt_sigprocmask, rt_sigtimedwait, execve, exit_group.
 *
 *   stage leave|exec SECONDS PATH ARGV0 [ARGV...]
 *
 * SIGUSR1: leave with success. SIGUSR2: run PATH with the arguments (a cold start). SIGURG: the worker is
 * alive, wait SECONDS anew. Nothing for SECONDS: nobody will come any more; leave with an error, or exec.
 */
#include <asm/signal.h>
#include <asm/unistd.h>
#include <linux/time_types.h>

enum { kBadUsage = 2, kNobodyCame = 75 /* EX_TEMPFAIL */, kCannotExec = 127, kEintr = -4, kEagain = -11 };

#ifndef __x86_64__
#error "the stage helper's entry and system calls are written for x86-64 only"
#endif

static long call4(long nr, long a, long b, long c, long d) {
    long result;
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10)
                     : "rcx", "r11", "memory");
    return result;
}

static void leave(int status) {
    for (;;)
        call4(__NR_exit_group, status, 0, 0, 0);
}

static int is_word(const char* text, const char* word) {
    while (*word && *text == *word)
        ++text, ++word;
    return *text == *word;
}

static long seconds(const char* text) {
    long value = 0;
    for (; *text >= '0' && *text <= '9' && value < 1000000000; ++text)
        value = value * 10 + (*text - '0');
    return *text ? -1 : value;
}

static unsigned long bit(int signal) {
    return 1UL << (signal - 1);
}

/* The signal that came, or kEagain when the time is over. */
static long wait_signal(const unsigned long* set, long limit) {
    struct __kernel_timespec timeout = {limit, 0};
    long got;
    do
        got = call4(__NR_rt_sigtimedwait, (long)set, 0, (long)&timeout, sizeof(*set));
    while (got == kEintr || got == SIGURG);
    return got;
}

__attribute__((used, noreturn)) static void stage(long* stack) {
    long argc = stack[0];
    char** argv = (char**)(stack + 1);
    char** envp = argv + argc + 1;
    unsigned long set = bit(SIGUSR1) | bit(SIGUSR2) | bit(SIGURG);
    /* Blocked and never waited for: the sign, in /proc/PID/status, that we are ready. The kernel takes the
     * others out of the blocked ones while we wait for them (kernel/signal.c, do_sigtimedwait). */
    unsigned long blocked = set | bit(SIGWINCH);
    unsigned long old = 0;
    long limit, got;
    if (argc < 5 || (limit = seconds(argv[2])) < 0)
        leave(kBadUsage);
    call4(__NR_rt_sigprocmask, SIG_BLOCK, (long)&blocked, (long)&old, sizeof(blocked));
    got = wait_signal(&set, limit);
    if (got == SIGUSR1)
        leave(0);
    if (got != SIGUSR2 && !is_word(argv[1], "exec"))
        leave(kNobodyCame);
    call4(__NR_rt_sigprocmask, SIG_SETMASK, (long)&old, 0, sizeof(old));
    call4(__NR_execve, (long)argv[3], (long)(argv + 4), (long)envp, 0);
    leave(kCannotExec);
    __builtin_unreachable();
}

/* The kernel enters with argc, argv and envp on the stack (System V ABI, x86-64, "Process
 * Initialization"); the stack is aligned for a call. */
__asm__(".globl _start\n"
        ".type _start, @function\n"
        "_start:\n"
        "    xor %ebp, %ebp\n"
        "    mov %rsp, %rdi\n"
        "    and $-16, %rsp\n"
        "    call stage\n"
        "    hlt\n");
