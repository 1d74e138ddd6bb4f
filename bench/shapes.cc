// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The benchmark's other victims: many of one thing, and hardly any memory.
// Usage: shapes processes|threads|files|mappings NUMBER READY_FILE
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <string>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <thread>

namespace {

[[noreturn]] void wait_forever() {
    for (;;)
        pause();
}

bool make_processes(int number) {
    for (int i = 1; i < number; i++) {
        pid_t pid = fork();
        if (pid < 0)
            return false;
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            wait_forever();
        }
    }
    return true;
}

bool make_threads(int number) {
    for (int i = 1; i < number; i++)
        std::thread(wait_forever).detach();
    return true;
}

bool open_files(int number) {
    rlimit limit{static_cast<rlim_t>(number) + 100, static_cast<rlim_t>(number) + 100};
    setrlimit(RLIMIT_NOFILE, &limit);
    for (int i = 0; i < number; i++)
        if (open("/proc/self/exe", O_RDONLY) < 0)
            return false;
    return true;
}

// Neighbours differ in their protection, or they would be one mapping.
bool make_mappings(int number) {
    constexpr size_t kPage = 4096;
    size_t size = static_cast<size_t>(number) * kPage;
    auto* at = static_cast<char*>(
        mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (at == MAP_FAILED)
        return false;
    for (size_t i = 0; i < size; i += kPage) {
        at[i] = 1;
        if (i / kPage % 2 != 0 && mprotect(at + i, kPage, PROT_READ) != 0)
            return false;
    }
    return true;
}

bool make(const std::string& what, int number) {
    if (what == "processes")
        return make_processes(number);
    if (what == "threads")
        return make_threads(number);
    if (what == "files")
        return open_files(number);
    return what == "mappings" && make_mappings(number);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4 || !make(argv[1], std::atoi(argv[2]))) {
        std::fprintf(stderr, "usage: shapes processes|threads|files|mappings NUMBER READY_FILE\n");
        return 2;
    }
    close(open(argv[3], O_WRONLY | O_CREAT, 0600));
    wait_forever();
}
