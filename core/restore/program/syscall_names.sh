#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# usage: syscall_names.sh COMPILER... -- prints the C initialisers {number, "name"}, of every system call
echo '#include <asm/unistd_64.h>' | "$@" -E -dM -x c - |
    sed -n 's/^#define __NR_\([a-z0-9_]*\) \([0-9]*\)$/{\2, "\1"},/p'
