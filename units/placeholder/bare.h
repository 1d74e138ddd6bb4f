/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a program without a C library needs: system calls, an end, an entry.
 */
#pragma once

#include <asm/unistd.h>

#ifndef __x86_64__
#error "the entry and the system calls are written for x86-64 only"
#endif

static long call5(long nr, long a, long b, long c, long d, long e) {
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

__attribute__((noreturn)) static void leave(int status) {
    for (;;)
        call5(__NR_exit_group, status, 0, 0, 0, 0);
}

/* The kernel enters with argc, argv and envp on the stack (System V ABI, x86-64, "Process
 * Initialization"); the stack is aligned for a call of bare_main(long* stack), which does not return. */
__asm__(".globl _start\n"
        ".type _start, @function\n"
        "_start:\n"
        "    xor %ebp, %ebp\n"
        "    mov %rsp, %rdi\n"
        "    and $-16, %rsp\n"
        "    call bare_main\n"
        "    hlt\n");
