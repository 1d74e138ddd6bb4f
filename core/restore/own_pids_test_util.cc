// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/restore/own_pids_test_util.h"

#include <csignal>
#include <cstdio>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace checkpointd {

namespace {

int exit_code(int status) {
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// PID 1 of the namespace: when it leaves, everything in it is killed.
[[noreturn]] void run_init() {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    bool mounted = mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
                   mount("proc", "/proc", "proc", 0, nullptr) == 0;
    if (!mounted)
        _exit(126);
    pid_t runner = fork();
    if (runner == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        exit(RUN_ALL_TESTS());
    }
    for (int status = 0;;)
        if (waitpid(-1, &status, 0) == runner)
            _exit(exit_code(status));
}

// Its children would enter the namespace, which is dead once its init is (fork() answers ENOMEM).
// LeakSanitizer makes one when a process exits, so this one leaves without; the process that ran
// the tests has been judged by then.
[[noreturn]] void leave_without_forking(int code) {
    std::fflush(nullptr);
    _exit(code);
}

}  // namespace

int run_tests_with_own_pids(int argc, char** argv) {
    testing::InitGoogleTest(&argc, argv);
    bool possible = geteuid() == 0 && !testing::GTEST_FLAG(list_tests) &&
                    unshare(CLONE_NEWPID | CLONE_NEWNS) == 0;
    if (!possible)
        return RUN_ALL_TESTS();
    pid_t init = fork();
    if (init == 0)
        run_init();
    int status = 0;
    while (waitpid(init, &status, 0) < 0) {
    }
    leave_without_forking(exit_code(status));
}

}  // namespace checkpointd
