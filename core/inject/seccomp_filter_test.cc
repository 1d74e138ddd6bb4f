// SPDX-License-Identifier: LGPL-2.1-or-later
#include <cstddef>
#include <fcntl.h>
#include <linux/audit.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "core/inject/seccomp_filter.h"

namespace checkpointd {
namespace {

constexpr uint32_t kErrno7 = SECCOMP_RET_ERRNO | 7;

seccomp_data call(int nr, uint64_t first = 0) {
    seccomp_data data{};
    data.nr = nr;
    data.arch = AUDIT_ARCH_X86_64;
    data.args[0] = first;
    return data;
}

SeccompFilter answers(uint32_t verdict) { return {BPF_STMT(BPF_RET | BPF_K, verdict)}; }

// getpid fails with 7 if bit 3 of its (senseless) argument is set and the argument / 8 is above 4.
const SeccompFilter kTricky{
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpid, 1, 0),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args)),
    BPF_STMT(BPF_ST, 5),
    BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 8, 1, 0),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    BPF_STMT(BPF_LDX | BPF_IMM, 8),
    BPF_STMT(BPF_LD | BPF_MEM, 5),
    BPF_STMT(BPF_ALU | BPF_DIV | BPF_X, 0),
    BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, 4, 0, 1),
    BPF_STMT(BPF_RET | BPF_K, kErrno7),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
};

TEST(SeccompFilter, StrictestVerdictWins) {
    EXPECT_EQ(seccomp_verdict({}, call(0)), static_cast<uint32_t>(SECCOMP_RET_ALLOW));
    EXPECT_EQ(seccomp_verdict({answers(SECCOMP_RET_ALLOW), answers(kErrno7)}, call(0)), kErrno7);
    EXPECT_EQ(seccomp_verdict({answers(SECCOMP_RET_KILL_PROCESS), answers(SECCOMP_RET_KILL_THREAD)},
                              call(0)),
              static_cast<uint32_t>(SECCOMP_RET_KILL_PROCESS));
    EXPECT_TRUE(seccomp_allows({answers(SECCOMP_RET_LOG)}, call(0)));
    EXPECT_FALSE(seccomp_allows({answers(SECCOMP_RET_TRACE)}, call(0)));
}

TEST(SeccompFilter, BrokenProgramsCountAsKilling) {
    EXPECT_FALSE(seccomp_allows({SeccompFilter{}}, call(0)));
    EXPECT_FALSE(seccomp_allows({{BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 4096)}}, call(0)));
    EXPECT_FALSE(seccomp_allows({{BPF_JUMP(BPF_JMP | BPF_JA, 0xffffffff, 0, 0)}}, call(0)));
    EXPECT_FALSE(seccomp_allows({{BPF_STMT(BPF_LDX | BPF_IMM, 0),
                                  BPF_STMT(BPF_ALU | BPF_DIV | BPF_X, 0),
                                  BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)}},
                                call(0)));
}

// The kernel is the oracle: a child installs the filter and makes the calls.
TEST(SeccompFilter, AgreesWithTheKernel) {
    for (uint64_t argument : {0, 8, 16, 32, 40, 41, 47, 48, 56, 4096 + 8}) {
        pid_t child = fork();
        if (child == 0) {
            sock_fprog program{static_cast<unsigned short>(kTricky.size()),
                               const_cast<sock_filter*>(kTricky.data())};
            prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
                _exit(2);
            _exit(syscall(SYS_getpid, argument) == -1 ? 1 : 0);
        }
        int status = 0;
        waitpid(child, &status, 0);
        bool allowed = seccomp_allows({kTricky}, call(SYS_getpid, argument));
        EXPECT_EQ(WEXITSTATUS(status), allowed ? 0 : 1) << argument;
    }
}

}  // namespace
}  // namespace checkpointd
