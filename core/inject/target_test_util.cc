// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/inject/target_test_util.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cerrno>
#include <chrono>
#include <climits>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <new>
#include <sstream>
#include <thread>

#include "core/kernel/proc_maps.h"
#include "core/kernel/proc_status.h"
#include "core/kernel/proc_task.h"

namespace checkpointd::testing {
namespace {

Shared* g_shared = nullptr;  // of this target process, for its handlers

constexpr int64_t kMillisecond = 1000000;
constexpr int64_t kSleep = 300 * kMillisecond;
// The machine may be busy; a sleep that began anew at each stop would never end, not be a little late.
constexpr int64_t kLate = 10'000 * kMillisecond;

int64_t now() {
    timespec ts{};
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * int64_t{1000000000} + ts.tv_nsec;
}

timespec to_timespec(int64_t ns) { return {ns / 1000000000, ns % 1000000000}; }

void check_sleep(Shared& shared, long result, int64_t begin) {
    int64_t took = now() - begin;
    if (result != 0)
        shared.fail("sleep failed, errno", errno);
    if (took < kSleep)
        shared.fail("sleep returned early, ns", took);
    if (took > kSleep + kLate)
        shared.fail("sleep returned late, ns", took);
}

void sleep_round(Shared& shared, int) {
    int64_t begin = now();
    timespec ts = to_timespec(kSleep);
    check_sleep(shared, syscall(SYS_nanosleep, &ts, nullptr), begin);
}

void absolute_sleep_round(Shared& shared, int) {
    int64_t begin = now();
    timespec ts = to_timespec(begin + kSleep);
    check_sleep(shared, syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, nullptr),
                begin);
}

void poll_round(Shared& shared, int) {
    int64_t begin = now();
    pollfd silent{shared.event_fd, POLLPRI, 0};
    check_sleep(shared, poll(&silent, 1, kSleep / kMillisecond), begin);
}

void futex_round(Shared& shared, int) {
    uint32_t before = shared.word.load();
    long result = syscall(SYS_futex, &shared.word, FUTEX_WAIT, before, nullptr, nullptr, 0);
    if (result != 0 && errno != EAGAIN)
        shared.fail("futex failed, errno", errno);
    if (shared.word.load() == before)
        shared.fail("futex returned without a reason", result);
}

void timed_futex_round(Shared& shared, int) {
    static uint32_t quiet = 0;
    int64_t begin = now();
    timespec ts = to_timespec(kSleep);
    long result = syscall(SYS_futex, &quiet, FUTEX_WAIT_PRIVATE, 0, &ts, nullptr, 0);
    if (result != -1 || errno != ETIMEDOUT)
        shared.fail("timed futex ended otherwise, errno", errno);
    check_sleep(shared, 0, begin);
}

void epoll_round(Shared& shared, int) {
    static int epoll = [&] {
        int fd = epoll_create1(0);
        epoll_event event{EPOLLIN, {.u64 = 42}};
        epoll_ctl(fd, EPOLL_CTL_ADD, shared.event_fd, &event);
        return fd;
    }();
    epoll_event event{};
    int n = epoll_wait(epoll, &event, 1, -1);
    while (n < 0 && errno == EINTR) {
        shared.eintrs.fetch_add(1);
        n = epoll_wait(epoll, &event, 1, -1);
    }
    if (n != 1 || event.data.u64 != 42)
        shared.fail("epoll_wait went wrong, errno", errno);
    uint64_t value = 0;
    if (read(shared.event_fd, &value, sizeof(value)) != sizeof(value) || value != 1)
        shared.fail("eventfd gave another value", static_cast<long>(value));
}

void read_round(Shared& shared, int) {
    static uint64_t expected = 0;
    uint64_t value = 0;
    if (read(shared.pipe_fd[0], &value, sizeof(value)) != sizeof(value))
        shared.fail("read failed, errno", errno);
    if (value != expected++)
        shared.fail("read other data", static_cast<long>(value));
}

void count_signal(int, siginfo_t* info, void*) {
    if (static_cast<uint64_t>(info->si_value.sival_int) != g_shared->next_value.fetch_add(1))
        g_shared->fail("signal out of order, value", info->si_value.sival_int);
    g_shared->signals.fetch_add(1);
}

void handle_realtime() {
    struct sigaction action {};
    action.sa_sigaction = count_signal;
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    sigaction(SIGRTMIN, &action, nullptr);
}

void check_interrupted(Shared& shared, long result, uint64_t before) {
    if (result != -1 || errno != EINTR)
        shared.fail("pause returned something, errno", errno);
    if (shared.signals.load() == before)
        shared.fail("pause ended without a signal", 0);
}

void pause_round(Shared& shared, int) {
    uint64_t before = shared.signals.load();
    check_interrupted(shared, syscall(SYS_pause), before);
}

void sigsuspend_round(Shared& shared, int) {
    sigset_t none, realtime;
    sigemptyset(&none);
    sigemptyset(&realtime);
    sigaddset(&realtime, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &realtime, nullptr);
    uint64_t before = shared.signals.load();
    check_interrupted(shared, sigsuspend(&none), before);
}

// Loads patterns into every register that user code owns, spins without touching flags, and compares.
void busy_round(Shared& shared, int) {
    alignas(64) uint64_t in[48];
    alignas(64) uint64_t out[48];
    for (size_t i = 0; i < 48; ++i)
        in[i] = 0x0123456789abcdefull * (i + 1) + shared.rounds[0].load();
    std::memset(out, 0, sizeof(out));
    unsigned char carry = 0;
    uint64_t *in_address = in, *out_address = out;
    unsigned char* carry_address = &carry;
    asm volatile(
        "pushq %%rbp\n\t pushq %%rbx\n\t"
        "pushq %[out]\n\t pushq %[carry]\n\t"
        "movq %[in], %%rax\n\t"
        "movdqa 128(%%rax), %%xmm0\n\t movdqa 144(%%rax), %%xmm1\n\t movdqa 160(%%rax), %%xmm2\n\t"
        "movdqa 176(%%rax), %%xmm7\n\t movdqa 192(%%rax), %%xmm8\n\t movdqa 208(%%rax), %%xmm15\n\t"
        "movq 8(%%rax), %%rbx\n\t movq 16(%%rax), %%rdx\n\t movq 24(%%rax), %%rsi\n\t"
        "movq 32(%%rax), %%rdi\n\t movq 40(%%rax), %%rbp\n\t movq 48(%%rax), %%r8\n\t"
        "movq 56(%%rax), %%r9\n\t movq 64(%%rax), %%r10\n\t movq 72(%%rax), %%r11\n\t"
        "movq 80(%%rax), %%r12\n\t movq 88(%%rax), %%r13\n\t movq 96(%%rax), %%r14\n\t"
        "movq 104(%%rax), %%r15\n\t movq 0(%%rax), %%rax\n\t"
        "movq $3000000, %%rcx\n\t stc\n\t"
        "1: leaq -1(%%rcx), %%rcx\n\t jrcxz 2f\n\t jmp 1b\n\t"
        "2: xchgq %%rax, 8(%%rsp)\n\t"  // rax = out; the slot holds what rax was
        "movq %%rbx, 8(%%rax)\n\t movq %%rdx, 16(%%rax)\n\t movq %%rsi, 24(%%rax)\n\t"
        "movq %%rdi, 32(%%rax)\n\t movq %%rbp, 40(%%rax)\n\t movq %%r8, 48(%%rax)\n\t"
        "movq %%r9, 56(%%rax)\n\t movq %%r10, 64(%%rax)\n\t movq %%r11, 72(%%rax)\n\t"
        "movq %%r12, 80(%%rax)\n\t movq %%r13, 88(%%rax)\n\t movq %%r14, 96(%%rax)\n\t"
        "movq %%r15, 104(%%rax)\n\t"
        "movq 8(%%rsp), %%rdx\n\t movq %%rdx, 0(%%rax)\n\t"
        "movdqa %%xmm0, 128(%%rax)\n\t movdqa %%xmm1, 144(%%rax)\n\t movdqa %%xmm2, 160(%%rax)\n\t"
        "movdqa %%xmm7, 176(%%rax)\n\t movdqa %%xmm8, 192(%%rax)\n\t movdqa %%xmm15, 208(%%rax)\n\t"
        "movq 0(%%rsp), %%rdx\n\t setc (%%rdx)\n\t"
        "addq $16, %%rsp\n\t popq %%rbx\n\t popq %%rbp\n\t"
        : [in] "+D"(in_address), [out] "+S"(out_address), [carry] "+d"(carry_address)
        :
        : "rax", "rcx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0", "xmm1", "xmm2",
          "xmm7", "xmm8", "xmm15", "memory", "cc");
    for (size_t i = 0; i < 28; ++i)
        if (i != 14 && i != 15 && in[i] != out[i])
            shared.fail("a register changed, number", static_cast<long>(i));
    if (carry != 1)
        shared.fail("the flags changed", carry);
}

template <typename Round>
void for_ever(Shared& shared, int thread, Round round) {
    shared.ready.fetch_add(1);
    for (;;) {
        round(shared, thread);
        shared.rounds[thread].fetch_add(1);
    }
}

template <typename Round>
std::function<void(Shared&)> loop(Round round) {
    return [round](Shared& shared) { for_ever(shared, 0, round); };
}

void many_threads(Shared& shared) {
    for (int i = 1; i < 5; ++i)
        new std::thread([&shared, i] {
            constexpr void (*rounds[])(Shared&, int) = {read_round, sleep_round, busy_round,
                                                        timed_futex_round};
            for_ever(shared, i, rounds[i - 1]);
        });
    for_ever(shared, 0, futex_round);
}

// Kills at anything that the loop, its own restart and an injector that keeps to the rules do not
// need. ASan's runtime asks for the alternate stack before calls that never return.
void install_strict_filter(bool with_ppoll) {
    std::vector<sock_filter> code{BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr))};
    std::vector<unsigned> numbers{SYS_nanosleep,  SYS_restart_syscall, SYS_clock_gettime,
                                  SYS_write,      SYS_rt_sigprocmask,  SYS_rt_sigreturn,
                                  SYS_exit_group, SYS_sigaltstack};
    if (with_ppoll)
        numbers.push_back(SYS_ppoll);
    for (unsigned number : numbers) {
        code.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1));
        code.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    }
    code.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS));
    sock_fprog program{static_cast<unsigned short>(code.size()), code.data()};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

// Of what is mapped there; 0 where nothing is.
uint64_t inode_at(pid_t pid, uint64_t address) {
    auto maps = read_maps(pid);
    if (maps)
        for (const ProcMapping& mapping : *maps)
            if (mapping.start == address)
                return mapping.inode;
    return 0;
}

uint64_t inode_at(pid_t pid, const void* address) {
    return inode_at(pid, reinterpret_cast<uint64_t>(address));
}

// Returns when thread 0 has done one more round than it had when `act` was called.
void wake_by(Target& target, const std::function<void(Shared&)>& act) {
    Shared& shared = target.shared();
    uint64_t before = shared.rounds[0].load();
    act(shared);
    if (!Target::eventually([&] { return shared.rounds[0].load() > before; }))
        shared.fail("did not wake", 0);
}

void wait_round(Target& target) {
    wake_by(target, [](Shared&) {});
}

void wake_futex(Shared& shared) {
    shared.word.fetch_add(1);
    syscall(SYS_futex, &shared.word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

// Written by the test process alone, so its own counter will do.
void write_pipe(Shared& shared) {
    uint64_t value = shared.rounds[7].fetch_add(1);
    if (write(shared.pipe_fd[1], &value, sizeof(value)) != sizeof(value))
        shared.fail("test cannot write", errno);
}

void write_event(Shared& shared) {
    uint64_t one = 1;
    if (write(shared.event_fd, &one, sizeof(one)) != sizeof(one))
        shared.fail("test cannot write", errno);
}

void queue_signal(Target& target) {
    // A signal between the check and pause() is the target's own race: it must be asleep.
    Target::eventually([&] { return target.status("State").starts_with("S") || target.shared().spins; });
    wake_by(target, [&](Shared& shared) {
        sigqueue(target.pid(), SIGRTMIN, {.sival_int = static_cast<int>(shared.rounds[6].fetch_add(1))});
    });
}

}  // namespace

void Shared::fail(const char* what, long value) {
    if (faults.fetch_add(1) == 0)
        snprintf(fault, sizeof(fault), "%s %ld", what, value);
}

void count_for_ever(Shared& shared) {
    for (shared.ready.fetch_add(1);; usleep(1000))
        shared.rounds[0].fetch_add(1);
}

Target::Target(const std::function<void(Shared&)>& body, unsigned threads) {
    void* memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    shared_ = new (memory) Shared{};
    if (pipe2(shared_->pipe_fd, O_CLOEXEC) != 0)
        std::abort();
    shared_->event_fd = eventfd(0, EFD_CLOEXEC);
    inode_ = inode_at(getpid(), shared_);
    pid_ = fork();
    if (pid_ == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        g_shared = shared_;
        body(*shared_);
        _exit(0);
    }
    eventually([&] { return shared_->ready.load() >= threads; });
}

Target::~Target() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    close(shared_->pipe_fd[0]);
    close(shared_->pipe_fd[1]);
    close(shared_->event_fd);
    munmap(shared_, sizeof(Shared));
}

bool Target::eventually(const std::function<bool()>& condition) {
    for (int64_t end = now() + 60'000 * kMillisecond; now() < end; usleep(100))
        if (condition())
            return true;
    return condition();
}

std::string Target::complaint() {
    int state = 0;
    if (waitpid(pid_, &state, WNOHANG | __WALL) != 0)
        return "the target died, status " + std::to_string(state);
    if (shared_->faults.load() != 0)
        return std::string("the target saw: ") + shared_->fault;
    return {};
}

std::string Target::maps() const {
    std::ifstream file("/proc/" + std::to_string(pid_) + "/maps");
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}

uint64_t Target::inode_of(uint64_t address) const {
    return inode_at(pid_, address);
}

std::string Target::relatives() const {
    std::string found;
    auto children = read_children(pid_);
    for (size_t i = 0; children && i < children->size(); ++i)
        found += "child " + std::to_string(children->at(i)) + " ";
    for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
        pid_t pid = std::atoi(entry.path().filename().c_str());
        auto status = read_status(pid);
        if (pid == pid_ || pid == getpid() || !status ||
            status->name != program_invocation_short_name)
            continue;
        if (inode_at(pid, shared_) == inode_)
            found += "copy " + std::to_string(pid) + " ";
    }
    return found;
}

void Target::settle() const {
    usleep(20000);
    eventually([&] { return shared_->spins || status("State").starts_with("S"); });
}

std::string Target::status(const std::string& field) const {
    std::ifstream file("/proc/" + std::to_string(pid_) + "/status");
    for (std::string line; std::getline(file, line);)
        if (line.starts_with(field + ":"))
            return line.substr(field.size() + 2);
    return "?";
}

const std::vector<Kind>& kinds() {
    static const std::vector<Kind> all{
        {"futex", loop(futex_round), [](Target& t) { wake_by(t, wake_futex); }},
        {"timed_futex", loop(timed_futex_round), wait_round},
        {"nanosleep", loop(sleep_round), wait_round},
        {"absolute_nanosleep", loop(absolute_sleep_round), wait_round},
        {"poll", loop(poll_round), wait_round},
        {"epoll_wait", loop(epoll_round), [](Target& t) { wake_by(t, write_event); }},
        {"read", loop(read_round), [](Target& t) { wake_by(t, write_pipe); }},
        {"pause",
         [](Shared& shared) {
             handle_realtime();
             for_ever(shared, 0, pause_round);
         },
         queue_signal},
        {"sigsuspend",
         [](Shared& shared) {
             handle_realtime();
             for_ever(shared, 0, sigsuspend_round);
         },
         queue_signal},
        {"busy",
         [](Shared& shared) {
             handle_realtime();
             shared.spins = 1;
             for_ever(shared, 0, busy_round);
         },
         queue_signal},
        {"many_threads", many_threads, [](Target& t) {
             wake_by(t, wake_futex);
             write_pipe(t.shared());
         },
         5},
        {"strict_seccomp",
         [](Shared& shared) {
             install_strict_filter(true);
             for_ever(shared, 0, sleep_round);
         },
         wait_round},
        {"stricter_seccomp",
         [](Shared& shared) {
             install_strict_filter(false);
             for_ever(shared, 0, sleep_round);
         },
         wait_round},
    };
    return all;
}

}  // namespace checkpointd::testing
