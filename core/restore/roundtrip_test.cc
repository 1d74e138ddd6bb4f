// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Dump, kill, restore: programs that prepare something, stand still while that happens to them, and then
// find out for themselves whether anything is different.
#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <mutex>
#include <set>
#include <sstream>
#include <grp.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include <fmt/core.h>

#include "core/base/scoped_fd.h"
#include "core/checkpoint/bare_process_test_util.h"
#include "core/checkpoint/checkpoint.h"
#include "core/restore/own_pids_test_util.h"
#include "core/restore/restore.h"
#include "images/test_dir.h"

namespace checkpointd {
namespace {

constexpr size_t kPage = 4096;


// The program's side of a round trip.
class Trip {
  public:
    explicit Trip(std::string dir) : dir_(std::move(dir)) {}

    // Returns in the restored process. Others of the family may call it too: the test waits for `waits`
    // calls in all.
    void stand_still() {
        std::ofstream(fmt::format("{}/ready.{}", dir_, syscall(SYS_gettid)));
        while (access((dir_ + "/go").c_str(), F_OK) != 0)
            usleep(1000);
    }
    void expect(bool good, const std::string& what) {
        if (!good)
            bad_ += what + "\n";
    }
    template <typename A, typename B>
    void same(const A& is, const B& was, const std::string& what) {
        expect(is == static_cast<A>(was), fmt::format("{}: is {}, was {}", what, is, was));
    }
    // The last word; then the process waits for its end.
    [[noreturn]] void end() {
        std::string name = fmt::format("{}/report.{}", dir_, getpid());
        std::ofstream(name + ".part") << bad_;
        rename((name + ".part").c_str(), name.c_str());
        for (;;)
            pause();
    }

  private:
    std::string dir_;
    std::string bad_;
};

using Life = std::function<void(Trip&)>;

class RoundTrip : public testing::Test {
  protected:
    void SetUp() override {
        if (geteuid() != 0)
            GTEST_SKIP() << "needs root";
        chmod(dir_.c_str(), 0777);
        std::filesystem::create_directory(dir_ + "/image");
        image_ = ScopedFd(open((dir_ + "/image").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    }

    void TearDown() override {
        for (pid_t pid : all_)
            kill(pid, SIGKILL);
        while (waitpid(-1, nullptr, __WALL) > 0) {
        }
    }

    pid_t start(const Life& life) {
        pid_t pid = fork();
        if (pid != 0)
            return pid;
        become_bare_process();
        Trip trip(dir_);
        life(trip);
        trip.end();
    }

    size_t count(const std::string& prefix) const {
        size_t found = 0;
        for (const auto& entry : std::filesystem::directory_iterator(dir_)) {
            std::string name = entry.path().filename();
            found += name.starts_with(prefix) && !name.ends_with(".part");
        }
        return found;
    }

    void wait_until(const std::string& prefix, size_t number) {
        for (int i = 0; i < 60'000 && count(prefix) < number; i++)
            usleep(1000);
        ASSERT_GE(count(prefix), number) << prefix;
    }

    // Down. `processes` of the family stand still.
    void checkpoint_and_kill(CheckpointRequest request, size_t processes) {
        wait_until("ready.", processes);
        usleep(5000);  // they sleep
        request.image_dir_fd = image_.get();
        CheckpointStats stats;
        auto held = checkpoint(request, silent_, stats);
        ASSERT_TRUE(held) << held.error().text();
        auto pids = held->pids();
        ASSERT_TRUE(held->kill());
        wait_for_end(pids);
    }

    // Orphans are reaped by init.
    static void wait_for_end(const std::vector<pid_t>& pids) {
        for (pid_t pid : pids) {
            waitpid(pid, nullptr, 0);
            for (int i = 0; i < 60'000 && kill(pid, 0) == 0; i++)
                usleep(1000);
        }
    }

    void build(const std::function<void(RestoreRequest&)>& adjust = {}) {
        RestoreRequest request(silent_);
        request.image_dir_fd = image_.get();
        if (adjust)
            adjust(request);
        RestoreStats stats;
        auto built = build_forest(request, stats);
        ASSERT_TRUE(built) << built.error().text();
        all_ = built->pids();
        ASSERT_TRUE(built->commit());
    }

    void expect_good_reports(size_t processes) {
        std::ofstream(dir_ + "/go");
        wait_until("report.", processes);
        for (const auto& entry : std::filesystem::directory_iterator(dir_)) {
            if (!entry.path().filename().string().starts_with("report."))
                continue;
            std::ifstream in(entry.path());
            std::string bad{std::istreambuf_iterator<char>(in), {}};
            EXPECT_EQ(bad, "") << entry.path();
        }
    }

    void round_trip(const Life& life, size_t standing = 1, size_t reporting = 1) {
        pid_t pid = start(life);
        CheckpointRequest request;
        request.target = TreeTarget{pid};
        checkpoint_and_kill(request, standing);
        if (HasFatalFailure())
            return;
        build();
        if (!HasFatalFailure())
            expect_good_reports(reporting);
    }

    images::TestDir tmp_;
    std::string dir_ = tmp_.path();
    ScopedFd image_;
    SilentSteps silent_;
    std::vector<pid_t> all_;
};

std::string text_of(const std::string& path) {
    std::ifstream in(path);
    return {std::istreambuf_iterator<char>(in), {}};
}

TEST_F(RoundTrip, OfNothingSpecial) {
    round_trip([](Trip& trip) {
        pid_t pid = getpid(), session = getsid(0);
        volatile double number = 1.25;
        trip.stand_still();
        trip.same(getpid(), pid, "pid");
        trip.same(getsid(0), session, "session");
        trip.same(static_cast<double>(number), 1.25, "number");
    });
}

// What belongs to a thread alone.
struct ThreadTraits {
    pid_t tid = gettid();
    std::string name;
    int policy = 0, nice = 0;
    cpu_set_t cpus{};
    long io_priority = 0;
    int slack = 0;
    sigset_t mask{};

    static ThreadTraits mine() {
        ThreadTraits traits;
        char name[16] = {};
        prctl(PR_GET_NAME, name);
        traits.name = name;
        traits.policy = sched_getscheduler(0);
        traits.nice = getpriority(PRIO_PROCESS, 0);
        sched_getaffinity(0, sizeof(traits.cpus), &traits.cpus);
        traits.io_priority = syscall(SYS_ioprio_get, 1, 0);
        traits.slack = prctl(PR_GET_TIMERSLACK);
        sigemptyset(&traits.mask);
        pthread_sigmask(SIG_SETMASK, nullptr, &traits.mask);
        return traits;
    }
    void expect_same(Trip& trip, const ThreadTraits& was) const {
        trip.same(tid, was.tid, "tid");
        trip.same(name, was.name, "name");
        trip.same(policy, was.policy, was.name + " policy");
        trip.same(nice, was.nice, was.name + " nice");
        trip.expect(CPU_EQUAL(&cpus, &was.cpus), was.name + " affinity");
        trip.same(io_priority, was.io_priority, was.name + " I/O priority");
        trip.same(slack, was.slack, was.name + " timer slack");
        for (int signal = 1; signal < 65; signal++)
            trip.same(sigismember(&mask, signal), sigismember(&was.mask, signal),
                      fmt::format("{} signal {} blocked", was.name, signal));
    }
};

void be_special(int number) {
    prctl(PR_SET_NAME, fmt::format("worker \"{}\"", number).c_str());
    sched_param none{};
    sched_setscheduler(0, number % 2 ? SCHED_BATCH : SCHED_IDLE, &none);
    setpriority(PRIO_PROCESS, 0, 3 + number);
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(number % static_cast<int>(std::thread::hardware_concurrency()), &cpus);
    sched_setaffinity(0, sizeof(cpus), &cpus);
    syscall(SYS_ioprio_set, 1, 0, 2 << 13 | (number + 2));  // best effort
    prctl(PR_SET_TIMERSLACK, 70000 + number);
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGRTMIN + number);
    pthread_sigmask(SIG_BLOCK, &mask, nullptr);
}

TEST_F(RoundTrip, OfThreads) {
    round_trip([](Trip& trip) {
        std::vector<std::thread> threads;
        std::array<Trip, 3> trips{trip, trip, trip};
        std::mutex lock;
        for (int i = 0; i < 3; i++)
            threads.emplace_back([&, i] {
                be_special(i);
                ThreadTraits before = ThreadTraits::mine();
                trips[static_cast<size_t>(i)].stand_still();
                ThreadTraits after = ThreadTraits::mine();
                std::lock_guard guard(lock);
                after.expect_same(trip, before);
            });
        ThreadTraits before = ThreadTraits::mine();
        trip.stand_still();
        for (std::thread& thread : threads)
            thread.join();  // pthread's own book-keeping: clear_child_tid
        ThreadTraits::mine().expect_same(trip, before);
        std::thread([&] { trip.expect(true, ""); }).join();
    }, 4);
}

struct Credentials {
    std::array<uid_t, 3> uids{};
    std::array<gid_t, 3> gids{};
    std::vector<gid_t> groups;
    std::string status;  // capabilities, groups, no_new_privs as /proc tells

    static Credentials mine() {
        Credentials mine;
        getresuid(&mine.uids[0], &mine.uids[1], &mine.uids[2]);
        getresgid(&mine.gids[0], &mine.gids[1], &mine.gids[2]);
        std::istringstream lines(text_of("/proc/thread-self/status"));
        for (std::string line; std::getline(lines, line);)
            for (const char* key : {"Uid:", "Gid:", "Groups:", "Cap", "NoNewPrivs:", "Seccomp"})
                if (line.starts_with(key))
                    mine.status += line + "\n";
        mine.status += fmt::format("securebits {:#x} dumpable {} death signal ", prctl(PR_GET_SECUREBITS),
                                   prctl(PR_GET_DUMPABLE));
        int signal = 0;
        prctl(PR_GET_PDEATHSIG, &signal);
        mine.status += std::to_string(signal);
        return mine;
    }
};

TEST_F(RoundTrip, OfCredentials) {
    round_trip([](Trip& trip) {
        gid_t groups[] = {7, 1234, 70000};
        setgroups(3, groups);
        prctl(PR_CAPBSET_DROP, CAP_SYS_MODULE);
        prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP);
        trip.same(setresgid(1001, 1002, 1003), 0, "setresgid");
        trip.same(setresuid(2001, 2002, 2003), 0, "setresuid");
        __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
        __user_cap_data_struct caps[2] = {};
        constexpr unsigned kKept = 1u << CAP_NET_BIND_SERVICE | 1u << CAP_CHOWN;
        caps[0] = {1u << CAP_CHOWN, kKept, kKept};
        trip.same(syscall(SYS_capset, &header, caps), 0, "capset");
        trip.same(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0), 0, "ambient");
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        prctl(PR_SET_PDEATHSIG, SIGUSR2);
        std::string before = Credentials::mine().status;
        trip.stand_still();
        trip.same(Credentials::mine().status, before, "credentials");
    });
}

std::vector<std::pair<int, int>> handled;  // signal and value, in order

void remember(int signal, siginfo_t* info, void*) {
    handled.emplace_back(signal, info->si_value.sival_int);
}

void send(int signal, int value, pid_t tid) {
    siginfo_t info{};
    info.si_signo = signal;
    info.si_code = SI_QUEUE;
    info.si_pid = getpid();
    info.si_value.sival_int = value;
    if (tid)
        syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, signal, &info);
    else
        syscall(SYS_rt_sigqueueinfo, getpid(), signal, &info);
}

TEST_F(RoundTrip, OfSignals) {
    round_trip([](Trip& trip) {
        struct sigaction action {};
        action.sa_sigaction = remember;
        action.sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK;
        sigaddset(&action.sa_mask, SIGALRM);
        for (int signal : {SIGUSR1, SIGRTMIN + 1, SIGRTMIN + 2, SIGTRAP, SIGCHLD})
            sigaction(signal, &action, nullptr);
        signal(SIGPIPE, SIG_IGN);
        std::vector<char> alternate(64 * 1024);
        stack_t stack{alternate.data(), 0, alternate.size()};
        sigaltstack(&stack, nullptr);
        sigset_t all, old;
        sigfillset(&all);
        sigprocmask(SIG_SETMASK, &all, &old);
        handled.reserve(16);
        send(SIGRTMIN + 1, 1, 0);
        send(SIGRTMIN + 1, 2, 0);
        send(SIGRTMIN + 2, 3, gettid());
        send(SIGRTMIN + 2, 4, gettid());
        send(SIGUSR1, 5, 0);
        send(SIGTRAP, 6, 0);
        trip.stand_still();
        sigset_t pending;
        sigpending(&pending);
        trip.same(sigismember(&pending, SIGUSR1), 1, "SIGUSR1 pending");
        trip.same(sigismember(&pending, SIGCHLD), 0, "SIGCHLD pending");
        trip.expect(handled.empty(), "nothing came while all was blocked");
        sigprocmask(SIG_SETMASK, &old, nullptr);
        std::vector<std::pair<int, int>> values;
        for (auto [signal, value] : handled)
            if (signal >= SIGRTMIN)
                values.emplace_back(signal - SIGRTMIN, value);
        std::sort(values.begin(), values.end());  // which signal is first is the kernel's choice
        std::vector<std::pair<int, int>> expected{{1, 1}, {1, 2}, {2, 3}, {2, 4}};
        trip.expect(values == expected, "queued values in order");
        trip.same(handled.size(), 6u, "signals handled");
        stack_t now{};
        sigaltstack(nullptr, &now);
        trip.expect(now.ss_sp == stack.ss_sp && now.ss_size == stack.ss_size, "alternate stack");
        constexpr int kRestorer = 0x04000000;  // SA_RESTORER, which the C library adds
        for (int signal : {SIGUSR1, SIGTRAP, SIGCHLD}) {
            struct sigaction is {};
            sigaction(signal, nullptr, &is);
            trip.expect(is.sa_sigaction == remember &&
                            (is.sa_flags & ~kRestorer) == action.sa_flags &&
                            sigismember(&is.sa_mask, SIGALRM) == 1,
                        fmt::format("action of signal {}", signal));
        }
        trip.expect(::signal(SIGPIPE, SIG_DFL) == SIG_IGN, "SIGPIPE ignored");
    });
}

TEST_F(RoundTrip, OfTimers) {
    round_trip([](Trip& trip) {
        struct sigaction action {};
        action.sa_sigaction = remember;
        action.sa_flags = SA_SIGINFO;
        for (int signal : {SIGALRM, SIGRTMIN, SIGRTMIN + 1, SIGVTALRM})
            sigaction(signal, &action, nullptr);
        handled.reserve(4096);
        sigevent event{};
        event.sigev_notify = SIGEV_SIGNAL;
        event.sigev_signo = SIGRTMIN;
        event.sigev_value.sival_int = 77;
        int passed = 0, plain = 0, directed = 0;
        syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &passed);
        syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &plain);
        event.sigev_notify = SIGEV_THREAD_ID;
        event._sigev_un._tid = gettid();
        event.sigev_signo = SIGRTMIN + 1;
        syscall(SYS_timer_create, CLOCK_REALTIME, &event, &directed);
        syscall(SYS_timer_delete, passed);
        itimerspec once{{0, 0}, {300, 0}}, often{{0, 20'000'000}, {0, 20'000'000}};
        syscall(SYS_timer_settime, plain, 0, &once, nullptr);
        syscall(SYS_timer_settime, directed, 0, &often, nullptr);
        itimerval real{{0, 0}, {500, 0}}, virt{{1, 5}, {400, 0}};
        setitimer(ITIMER_REAL, &real, nullptr);
        setitimer(ITIMER_VIRTUAL, &virt, nullptr);
        trip.stand_still();
        itimerspec left{};
        trip.same(syscall(SYS_timer_gettime, plain, &left), 0, "timer has its id");
        trip.expect(left.it_value.tv_sec > 200 && left.it_value.tv_sec <= 300,
                    "time left on a timer");
        trip.same(syscall(SYS_timer_gettime, passed, &left), -1, "deleted timer");
        itimerval now{};
        getitimer(ITIMER_REAL, &now);
        trip.expect(now.it_value.tv_sec > 400 && now.it_value.tv_sec <= 500,
                    "time left on ITIMER_REAL");
        getitimer(ITIMER_VIRTUAL, &now);
        trip.expect(now.it_value.tv_sec > 380 && now.it_interval.tv_usec == 5, "ITIMER_VIRTUAL");
        handled.clear();
        for (int i = 0; i < 6000 && handled.size() < 3; i++)
            usleep(10'000);
        trip.expect(handled.size() >= 3, "the periodic timer goes on");
        for (auto [signal, value] : handled)
            trip.expect(signal == SIGRTMIN + 1 && value == 77, "signal and value of a timer");
        int next = 0;
        trip.same(syscall(SYS_timer_create, CLOCK_MONOTONIC, nullptr, &next), 0, "another timer");
        trip.expect(next != plain && next != directed, "id of another timer");
    });
}

char* map_memory(size_t pages, int flags, int fd = -1) {
    return static_cast<char*>(mmap(nullptr, pages * kPage, PROT_READ | PROT_WRITE,
                                   flags | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0));
}

// Flags of the mapping at `address`, from smaps.
std::string vm_flags(const void* address) {
    std::istringstream lines(text_of("/proc/self/smaps"));
    std::string head = fmt::format("{:x}-", reinterpret_cast<uint64_t>(address));
    bool here = false;
    for (std::string line; std::getline(lines, line);) {
        if (line.find("Size:") == std::string::npos && line.find('-') < 17)
            here = line.starts_with(head);
        if (!here || !line.starts_with("VmFlags:"))
            continue;
        // "There may be guards": a mapping keeps it from a neighbour with which it was one for a moment.
        if (size_t guard = line.find("gu "); guard != std::string::npos)
            line.erase(guard, 3);
        return line;
    }
    return "";
}

TEST_F(RoundTrip, OfPrivateMemory) {
    std::string path = dir_ + "/mapped";
    std::ofstream(path) << std::string(4 * kPage, 'f');
    round_trip([path](Trip& trip) {
        int fd = open(path.c_str(), O_RDWR);
        char* file = map_memory(4, MAP_PRIVATE, fd);
        char* shared_file = map_memory(2, MAP_SHARED, fd);
        close(fd);
        file[kPage] = 'x';
        char* hidden = map_memory(3, MAP_PRIVATE);
        std::memset(hidden, 'h', 3 * kPage);
        mprotect(hidden, 2 * kPage, PROT_NONE);
        std::vector<std::pair<int, char*>> advised;
        for (int advice : {MADV_DONTFORK, MADV_WIPEONFORK, MADV_HUGEPAGE, MADV_NOHUGEPAGE,
                           MADV_DONTDUMP, MADV_MERGEABLE}) {
            char* memory = map_memory(3, MAP_PRIVATE);
            mprotect(memory + 2 * kPage, kPage, PROT_READ);  // so that neighbours stay apart
            std::memset(memory, advice, kPage);
            trip.same(madvise(memory, 2 * kPage, advice), 0, fmt::format("advice {}", advice));
            advised.emplace_back(advice, memory);
        }
        char* locked = map_memory(2, MAP_PRIVATE);
        trip.same(mlock(locked, 2 * kPage), 0, "mlock");
        char* guarded = map_memory(4, MAP_PRIVATE);
        std::memset(guarded, 'g', 4 * kPage);
        bool has_guard = madvise(guarded + kPage, kPage, 102) == 0;  // MADV_GUARD_INSTALL
        char* grown = static_cast<char*>(sbrk(3 * kPage));
        std::memset(grown, 'b', 3 * kPage);
        std::vector<std::string> flags;
        for (auto [advice, memory] : advised)
            flags.push_back(vm_flags(memory));
        std::string locked_flags = vm_flags(locked);
        trip.stand_still();
        trip.expect(file[0] == 'f' && file[kPage] == 'x' && file[kPage + 1] == 'f', "private file mapping");
        shared_file[5] = 's';
        trip.same(text_of(path)[5], 's', "shared file mapping");
        trip.same(text_of(path)[kPage], 'f', "file behind a private mapping");
        int probe[2];
        (void)!pipe(probe);
        trip.same(write(probe[1], hidden, 1), -1, "PROT_NONE is not readable");
        mprotect(hidden, 2 * kPage, PROT_READ);
        trip.expect(hidden[0] == 'h' && hidden[2 * kPage - 1] == 'h', "content of PROT_NONE pages");
        for (size_t i = 0; i < advised.size(); i++) {
            trip.same(vm_flags(advised[i].second), flags[i], fmt::format("advice {}", advised[i].first));
            trip.same(advised[i].second[7], advised[i].first, "content of advised memory");
        }
        trip.same(vm_flags(locked), locked_flags, "locked memory");
        if (has_guard) {
            trip.same(write(probe[1], guarded + kPage, 1), -1, "guard");
            trip.expect(guarded[0] == 'g' && guarded[2 * kPage] == 'g', "content beside a guard");
        }
        trip.expect(sbrk(0) == grown + 3 * kPage && grown[0] == 'b', "brk");
        char* more = static_cast<char*>(sbrk(5 * kPage));
        trip.expect(more == grown + 3 * kPage, "brk grows on");
        more[4 * kPage] = 1;
        std::vector<char> heap(1 << 20, 'm');  // malloc's state
        trip.same(heap[12345], 'm', "heap");
    });
}

TEST_F(RoundTrip, OfSharedMemory) {
    round_trip([](Trip& trip) {
        auto* anonymous = reinterpret_cast<std::atomic<int>*>(map_memory(4, MAP_SHARED));
        int fd = memfd_create("named", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        trip.same(ftruncate(fd, 5 * kPage + 100), 0, "ftruncate");
        auto* named = reinterpret_cast<std::atomic<int>*>(map_memory(5, MAP_SHARED, fd));
        anonymous[1024] = 5, named[2048] = 6;
        (void)!pwrite(fd, "end", 3, 5 * kPage);
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK);
        pid_t child = fork();
        trip.stand_still();
        trip.same(anonymous[1024].load(), 5, "shared anonymous");
        trip.same(named[2048].load(), 6, "memfd");
        if (child == 0) {
            anonymous[0] = 7, named[0] = 8;
            for (int i = 0; i < 60'000 && anonymous[1] != 9; i++)
                usleep(1000);
            trip.same(anonymous[1].load(), 9, "parent's write");
            return;
        }
        for (int i = 0; i < 60'000 && named[0] != 8; i++)
            usleep(1000);
        trip.same(anonymous[0].load(), 7, "child's write");
        trip.same(named[0].load(), 8, "child's write to a memfd");
        anonymous[1] = 9;
        char end[4] = {};
        (void)!pread(fd, end, 3, 5 * kPage);
        trip.same(std::string(end), "end", "unmapped end of a memfd");
        trip.same(fcntl(fd, F_GET_SEALS), F_SEAL_SHRINK, "seals");
    }, 2, 2);
}

TEST_F(RoundTrip, OfSharedMemoryThatIsOpen) {
    round_trip([](Trip& trip) {
        char* memory = map_memory(5, MAP_SHARED);
        memory[0] = 1, memory[kPage] = 2, memory[2 * kPage] = 3;
        auto address = reinterpret_cast<uintptr_t>(memory);
        int fd = open(fmt::format("/proc/self/map_files/{:x}-{:x}", address, address + 5 * kPage).c_str(),
                      O_RDWR);
        trip.expect(fd >= 0, "map_files");
        auto* own = static_cast<char*>(mmap(nullptr, 4 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, kPage));
        auto* again = static_cast<char*>(mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 2 * kPage));
        own[kPage] = 4;
        lseek(fd, 17, SEEK_SET);
        trip.stand_still();
        trip.expect(own[0] == 2 && own[kPage] == 4 && again[0] == 3, "content");
        trip.same(lseek(fd, 0, SEEK_CUR), 17, "position");
        again[0] = 5;
        trip.same(memory[2 * kPage], 5, "memory that is mapped twice");
        memory[3 * kPage] = 6;
        trip.same(own[2 * kPage], 6, "page of the private mapping that nobody wrote to");
        char byte = 0;
        trip.same(pread(fd, &byte, 1, 3 * kPage), 1, "read");
        trip.same(byte, 6, "the open file");
    });
}

TEST_F(RoundTrip, OfTheProcess) {
    std::filesystem::create_directory(dir_ + "/work");
    std::string dir = dir_ + "/work";
    round_trip([dir](Trip& trip) {
        (void)!chdir(dir.c_str());
        umask(0137);
        rlimit core{4096, 8192}, files{100, 200};
        setrlimit(RLIMIT_CORE, &core);
        setrlimit(RLIMIT_NOFILE, &files);
        std::ofstream("/proc/self/oom_score_adj") << 321;
        std::ofstream("/proc/self/coredump_filter") << "0x7f";
        prctl(PR_SET_CHILD_SUBREAPER, 1);
        prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
        auto traits = [] {
            std::string all = text_of("/proc/self/limits") + text_of("/proc/self/oom_score_adj") +
                              text_of("/proc/self/coredump_filter") + text_of("/proc/self/cmdline") +
                              text_of("/proc/self/environ") + text_of("/proc/self/auxv") +
                              text_of("/proc/self/comm") + text_of("/proc/self/personality") +
                              text_of("/proc/self/loginuid");
            int reaper = 0;
            prctl(PR_GET_CHILD_SUBREAPER, &reaper);
            return all + fmt::format("{} {} {} {}", reaper, prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0),
                                     std::filesystem::current_path().string(),
                                     std::filesystem::read_symlink("/proc/self/exe").string());
        };
        std::string before = traits();
        trip.stand_still();
        std::string after = traits();
        trip.same(after, before, "traits");
        trip.same(umask(0), 0137u, "umask");
    });
}

TEST_F(RoundTrip, OfFutexesAndRseq) {
    round_trip([](Trip& trip) {
        auto* mutex = reinterpret_cast<pthread_mutex_t*>(map_memory(1, MAP_SHARED));
        pthread_mutexattr_t kind;
        pthread_mutexattr_init(&kind);
        pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
        pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
        pthread_mutex_init(mutex, &kind);
        pid_t child = fork();
        if (child == 0) {
            pthread_mutex_lock(mutex);
            trip.stand_still();
            _exit(0);  // with the lock held
        }
        trip.stand_still();
        trip.same(pthread_mutex_lock(mutex), EOWNERDEAD, "lock of a dead owner");
        trip.same(waitpid(child, nullptr, 0), child, "child");
        trip.same(sched_getcpu() >= 0, true, "rseq");
    }, 2);
}

TEST_F(RoundTrip, OfDescriptors) {
    round_trip([](Trip& trip) {
        int event = eventfd(3, EFD_NONBLOCK);
        int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
        itimerspec soon{{0, 0}, {0, 50'000'000}};
        sigset_t mask;
        sigemptyset(&mask);
        sigaddset(&mask, SIGUSR1);
        sigprocmask(SIG_BLOCK, &mask, nullptr);
        int signals = signalfd(-1, &mask, SFD_NONBLOCK);
        send(SIGUSR1, 44, 0);
        int poll = epoll_create1(0);
        for (int fd : {event, timer, signals}) {
            epoll_event watch{EPOLLIN, {.u64 = static_cast<uint64_t>(fd) << 32 | 1}};
            epoll_ctl(poll, EPOLL_CTL_ADD, fd, &watch);
        }
        int pair[2], pipes[2];
        socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
        (void)!write(pair[0], "in the socket", 13);
        (void)!pipe2(pipes, O_NONBLOCK);
        (void)fcntl(pipes[0], F_SETPIPE_SZ, 8192);
        (void)!write(pipes[1], "in the pipe", 11);
        int listener = socket(AF_INET, SOCK_STREAM, 0);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address));
        listen(listener, 5);
        socklen_t size = sizeof(address);
        getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size);
        trip.stand_still();
        timerfd_settime(timer, 0, &soon, nullptr);
        pollfd expired{timer, POLLIN, 0};
        trip.same(::poll(&expired, 1, 60'000), 1, "timer");
        std::set<int> ready;
        epoll_event events[8];
        for (int i = 0, n = epoll_wait(poll, events, 8, 1000); i < n; i++)
            ready.insert(static_cast<int>(events[i].data.u64 >> 32));
        trip.expect(ready == std::set<int>{event, timer, signals}, "epoll");
        uint64_t number = 0;
        (void)!read(event, &number, 8);
        trip.same(number, 3u, "eventfd");
        signalfd_siginfo info{};
        (void)!read(signals, &info, sizeof(info));
        trip.same(info.ssi_int, 44, "signalfd");
        char text[32] = {};
        (void)!read(pair[1], text, 32);
        trip.same(std::string(text), "in the socket", "socketpair");
        std::memset(text, 0, sizeof(text));
        (void)!read(pipes[0], text, 32);
        trip.same(std::string(text), "in the pipe", "pipe");
        trip.same(fcntl(pipes[0], F_GETPIPE_SZ), 8192, "size of a pipe");
        int client = socket(AF_INET, SOCK_STREAM, 0);
        trip.same(connect(client, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0, "connect");
        trip.expect(accept(listener, nullptr, nullptr) >= 0, "accept");
    });
}

TEST_F(RoundTrip, OfAStoppedJob) {
    round_trip([](Trip& trip) {
        pid_t child = fork();
        if (child == 0) {
            raise(SIGSTOP);
            _exit(5);
        }
        int status = 0;
        waitpid(child, &status, WUNTRACED);
        trip.stand_still();
        char state = '?';
        for (int i = 0; i < 60'000 && state != 'T'; i++) {
            std::string stat = text_of(fmt::format("/proc/{}/stat", child));
            state = stat.at(stat.rfind(')') + 2);
            usleep(1000);
        }
        trip.same(state, 'T', "state of the stopped child");
        kill(child, SIGCONT);
        trip.same(waitpid(child, &status, 0), child, "waitpid");
        trip.same(status, 5 << 8, "status of the child that went on");
    });
}

// What waitid(2) tells of how a child was stopped.
int stop_signal_of(pid_t child) {
    siginfo_t info{};
    waitid(P_PID, static_cast<id_t>(child), &info, WSTOPPED | WNOWAIT);
    return info.si_status;
}

TEST_F(RoundTrip, OfJobsThatATerminalStopped) {
    round_trip([](Trip& trip) {
        signal(SIGTTIN, [](int) {});
        std::vector<std::pair<pid_t, int>> jobs;
        for (int with : {SIGTSTP, SIGTTIN, SIGTTOU}) {
            pid_t child = fork();
            if (child == 0) {
                setpgid(0, 0);
                for (;;)
                    pause();
            }
            setpgid(child, child);
            if (with == SIGTTIN)  // it has a handler, so another one has to stop it
                kill(child, SIGSTOP);
            else
                kill(child, with);
            jobs.emplace_back(child, with == SIGTTIN ? SIGSTOP : with);
            trip.same(stop_signal_of(child), jobs.back().second, "signal before");
        }
        trip.stand_still();
        for (auto [child, with] : jobs) {
            trip.same(stop_signal_of(child), with, "signal that stopped a job");
            kill(child, SIGKILL);
        }
    });
}

TEST_F(RoundTrip, OfSleepers) {
    round_trip([](Trip& trip) {
        timespec deadline{}, woken{};
        std::thread sleeper([&] {
            clock_gettime(CLOCK_MONOTONIC, &deadline);
            deadline.tv_sec += 2;
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &deadline, nullptr);
            clock_gettime(CLOCK_MONOTONIC, &woken);
        });
        trip.stand_still();
        sleeper.join();
        trip.expect(woken.tv_sec >= deadline.tv_sec && woken.tv_sec <= deadline.tv_sec + 60,
                    "woken at the deadline");
    });
}

long refuse(long nr, unsigned error, unsigned flags = 0) {
    sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(nr), 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    sock_fprog program{4, code};
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

int error_of(long nr) {
    errno = 0;
    syscall(nr);
    return errno;
}

TEST_F(RoundTrip, OfFiltersThatThreadsShareOrNot) {
    round_trip([](Trip& trip) {
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        refuse(SYS_getppid, 61);
        int seen[4] = {};
        std::atomic<bool> has_seen = false;
        std::thread other([&] {
            refuse(SYS_getuid, 62);
            refuse(SYS_munmap, 63);  // needed to leave the restore's own memory
            trip.stand_still();
            seen[0] = error_of(SYS_getppid), seen[1] = error_of(SYS_getuid);
            has_seen = true;
            syscall(SYS_exit, 0);  // pthread would unmap
        });
        trip.stand_still();
        for (int i = 0; i < 60'000 && !has_seen; i++)
            usleep(1000);
        seen[2] = error_of(SYS_getppid), seen[3] = error_of(SYS_getuid);
        other.detach();
        trip.same(seen[0], 61, "inherited filter");
        trip.same(seen[1], 62, "own filter");
        trip.same(seen[2], 61, "filter of the main thread");
        trip.same(seen[3], 0, "filter of the other thread only");
    }, 2);
}

TEST_F(RoundTrip, OfFiltersThatCanStillBeSynchronised) {
    round_trip([](Trip& trip) {
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        refuse(SYS_getppid, 61);
        refuse(SYS_getgid, 62);
        std::atomic<bool> added = false;
        int seen = 0;
        std::thread other([&] {
            trip.stand_still();
            while (!added)
                usleep(1000);
            seen = error_of(SYS_getuid);
        });
        trip.stand_still();
        trip.same(refuse(SYS_getuid, 63, SECCOMP_FILTER_FLAG_TSYNC), 0, "SECCOMP_FILTER_FLAG_TSYNC");
        added = true;
        other.join();
        trip.same(seen, 63, "filter that came along");
        trip.same(error_of(SYS_getppid), 61, "oldest filter");
        trip.same(error_of(SYS_getgid), 62, "second filter");
    }, 2);
}

// Enters a new user namespace with a mapping as systemd makes it for PrivateUsers=: root, `id` and
// nobody else, groups not to be set. The map has to be written from outside.
void enter_user_namespace(uid_t id) {
    int gate[2];
    if (pipe(gate) != 0)
        _exit(1);
    pid_t inside = getpid(), mapper = fork();
    char byte = 0;
    if (mapper == 0) {
        if (read(gate[0], &byte, 1) == 1) {
            std::ofstream(fmt::format("/proc/{}/setgroups", inside)) << "deny";
            for (const char* map : {"uid_map", "gid_map"})
                std::ofstream(fmt::format("/proc/{}/{}", inside, map))
                    << fmt::format("0 0 1\n{0} {0} 1\n", id);
        }
        _exit(0);
    }
    if (unshare(CLONE_NEWUSER) != 0 || write(gate[1], &byte, 1) != 1)
        _exit(1);
    close(gate[0]);
    close(gate[1]);
    waitpid(mapper, nullptr, 0);
}

// A process with a user namespace that the tasks can be restored into, as a unit's stage has it.
class UserStage {
  public:
    explicit UserStage(uid_t id) {
        int gate[2];
        EXPECT_EQ(pipe2(gate, O_CLOEXEC), 0);
        pid_ = fork();
        if (pid_ == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            enter_user_namespace(id);
            if (write(gate[1], "", 1) == 1)
                for (;;)
                    pause();
            _exit(1);
        }
        char byte = 0;
        EXPECT_EQ(read(gate[0], &byte, 1), 1);
        close(gate[0]);
        close(gate[1]);
        pidfd_ = ScopedFd(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
    }
    ~UserStage() {
        kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
    }
    int pidfd() const { return pidfd_.get(); }

  private:
    pid_t pid_ = -1;
    ScopedFd pidfd_;
};

std::string user_namespace_of_self() {
    return text_of("/proc/self/uid_map") + text_of("/proc/self/gid_map") +
           text_of("/proc/self/setgroups");
}

// What needs privileges on the machine, before they are given up: ids, a lower nice value, a
// directory that nobody in the namespace may enter.
void prepare_for_user_namespace() {
    gid_t groups[] = {1000, 5000};
    setgroups(2, groups);
    setpriority(PRIO_PROCESS, 0, -7);
    mkdir("closed", 0700);
    if (chown("closed", 3000, 3000) != 0 || chdir("closed") != 0)
        _exit(1);
    enter_user_namespace(1000);
    if (setresgid(1000, 1000, 1000) != 0 || setresuid(1000, 1000, 1000) != 0)
        _exit(1);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

constexpr size_t kUserThreads = 12;

void live_in_user_namespace(Trip& trip, const std::string& dir) {
    if (chdir(dir.c_str()) != 0)
        _exit(1);
    prepare_for_user_namespace();
    std::vector<std::thread> threads;
    std::mutex lock;
    std::string users = user_namespace_of_self();
    trip.expect(users.find("1000") != std::string::npos, "is in a user namespace");
    for (size_t i = 0; i < kUserThreads; i++)
        threads.emplace_back([&, i] {
            setpriority(PRIO_PROCESS, 0, static_cast<int>(i) - 6);
            std::string before = Credentials::mine().status;
            ThreadTraits traits = ThreadTraits::mine();
            Trip(dir).stand_still();
            std::lock_guard guard(lock);
            ThreadTraits::mine().expect_same(trip, traits);
            trip.same(Credentials::mine().status, before, "a thread's credentials");
        });
    struct rlimit files {
        100, 200
    };
    setrlimit(RLIMIT_NOFILE, &files);
    std::string before = Credentials::mine().status;
    trip.stand_still();
    for (std::thread& thread : threads)
        thread.join();
    trip.same(user_namespace_of_self(), users, "the user namespace");
    trip.same(Credentials::mine().status, before, "credentials");
    trip.same(getpriority(PRIO_PROCESS, 0), -7, "nice");
    trip.expect(std::filesystem::current_path().filename() == "closed", "the current directory");
    getrlimit(RLIMIT_NOFILE, &files);
    trip.same(files.rlim_cur + files.rlim_max, 300u, "limits");
}

class UserRoundTrip : public RoundTrip {
  protected:
    void go_down() {
        const std::string dir = dir_;
        pid_t pid = start([dir](Trip& trip) { live_in_user_namespace(trip, dir); });
        CheckpointRequest request;
        request.target = TreeTarget{pid};
        checkpoint_and_kill(request, 1 + kUserThreads);
    }
};

TEST_F(UserRoundTrip, OfAUserNamespace) {
    go_down();
    UserStage stage(1000);
    build([&](RestoreRequest& request) { request.namespaces_of_pidfd = stage.pidfd(); });
    if (!HasFatalFailure())
        expect_good_reports(1);
}

// Others fork as fast as they can: some of the numbers are snatched away, and asked for again.
TEST_F(UserRoundTrip, OfAUserNamespaceAmongManyForks) {
    go_down();
    UserStage stage(1000);
    std::vector<pid_t> storm;
    for (int i = 0; i < 2; i++)
        if (storm.push_back(fork()); storm.back() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (;;)
                if (pid_t child = fork(); child == 0)
                    _exit(0);
                else
                    waitpid(child, nullptr, 0);
        }
    build([&](RestoreRequest& request) { request.namespaces_of_pidfd = stage.pidfd(); });
    for (pid_t pid : storm) {
        kill(pid, SIGKILL);
        waitpid(pid, nullptr, 0);
    }
    if (!HasFatalFailure())
        expect_good_reports(1);
}

TEST_F(UserRoundTrip, IntoAnotherUserNamespaceIsRefused) {
    go_down();
    UserStage other(1001);
    RestoreRequest request(silent_);
    request.image_dir_fd = image_.get();
    RestoreStats stats;
    auto none = build_forest(request, stats);
    ASSERT_FALSE(none);
    EXPECT_NE(none.error().text().find("there is none now"), std::string::npos)
        << none.error().text();
    request.namespaces_of_pidfd = other.pidfd();
    auto wrong = build_forest(request, stats);
    ASSERT_FALSE(wrong);
    EXPECT_NE(wrong.error().text().find("1000 is 1000; now 0 is 0, 1001 is 1001"),
              std::string::npos)
        << wrong.error().text();
}

TEST_F(RoundTrip, OfZombiesAndDeadLeaders) {
    round_trip([](Trip& trip) {
        pid_t exited = fork();
        if (exited == 0)
            _exit(33);
        pid_t killed = fork();
        if (killed == 0)
            raise(SIGKILL);
        prctl(PR_SET_CHILD_SUBREAPER, 1);
        pid_t leader = fork();
        if (leader == 0) {
            setsid();
            if (fork() == 0) {  // a daemon: its session's leader is dead, and we adopted it
                setpgid(0, 0);
                if (fork() == 0)
                    setpgid(0, 0);
                pid_t group = getpgrp(), session = getsid(0);
                while (getppid() == session)
                    usleep(1000);
                pid_t parent = getppid();
                trip.stand_still();
                trip.same(getsid(0), session, "daemon's session");
                trip.same(getpgrp(), group, "daemon's group");
                trip.same(getppid(), parent, "daemon's parent");
                return;
            }
            _exit(0);
        }
        waitpid(leader, nullptr, 0);
        siginfo_t info{};
        waitid(P_PID, static_cast<id_t>(exited), &info, WEXITED | WNOWAIT);
        waitid(P_PID, static_cast<id_t>(killed), &info, WEXITED | WNOWAIT);
        trip.stand_still();
        int status = 0;
        trip.same(waitpid(exited, &status, 0), exited, "zombie");
        trip.same(status, 33 << 8, "its status");
        trip.same(waitpid(killed, &status, 0), killed, "killed zombie");
        trip.same(status, SIGKILL, "its signal");
        trip.same(kill(leader, 0), -1, "the stand-in of the dead leader is gone");
    }, 3, 3);
}

// Nanoseconds by which the clocks of our time namespace are ahead of the machine's.
int64_t clock_offset() {
    std::ifstream in("/proc/self/timens_offsets");
    std::string clock;
    int64_t seconds = 0, nanoseconds = 0;
    while (in >> clock >> seconds >> nanoseconds)
        if (clock == "monotonic")
            return seconds * 1'000'000'000 + nanoseconds;
    return 0;
}

TEST_F(RoundTrip, OfAClockThatStoodStillMeanwhile) {
    round_trip([ours = clock_offset()](Trip& trip) {
        trip.stand_still();
        trip.expect(clock_offset() < ours, "the clock goes on where it was");
    });
}

TEST_F(RoundTrip, OfAClockThatMayNotLag) {
    pid_t pid = start([ours = clock_offset()](Trip& trip) {
        trip.stand_still();
        trip.same(clock_offset(), ours, "offset of the clock, which jumps to ours");
    });
    CheckpointRequest request;
    request.target = TreeTarget{pid};
    checkpoint_and_kill(request, 1);
    build([](RestoreRequest& restore) { restore.clocks_may_lag = false; });
    expect_good_reports(1);
}

// A cgroup of our own, or nothing where there is no cgroup2.
class Cgroup {
  public:
    Cgroup() {
        for (const char* root : {"/sys/fs/cgroup/unified", "/sys/fs/cgroup"})
            if (access((std::string(root) + "/cgroup.procs").c_str(), W_OK) == 0) {
                path_ = fmt::format("{}/checkpointd-roundtrip-{}", root, time(nullptr));
                std::filesystem::create_directory(path_);
                return;
            }
    }
    ~Cgroup() {
        for (int i = 0;
             i < 6000 && !path_.empty() && rmdir((path_ + "/below").c_str()) != 0 && errno == EBUSY;
             i++)
            usleep(5000);
        for (int i = 0; i < 6000 && !path_.empty() && rmdir(path_.c_str()) != 0 && errno == EBUSY;
             i++)
            usleep(5000);
    }
    const std::string& path() const { return path_; }
    void add(pid_t pid) { std::ofstream(path_ + "/cgroup.procs") << pid; }
    std::set<pid_t> members() const {
        std::ifstream in(path_ + "/cgroup.procs");
        return {std::istream_iterator<pid_t>(in), {}};
    }

  private:
    std::string path_;
};

TEST_F(RoundTrip, OfACgroupWithTwoRoots) {
    auto cgroup = std::make_unique<Cgroup>();
    if (cgroup->path().empty())
        GTEST_SKIP() << "no cgroup2";
    Life life = [](Trip& trip) {
        pid_t pid = getpid();
        trip.stand_still();
        trip.same(getpid(), pid, "pid");
    };
    pid_t first = start(life), second = start(life);
    std::string below = cgroup->path() + "/below";
    std::filesystem::create_directory(below);
    cgroup->add(first);
    std::ofstream(below + "/cgroup.procs") << second;
    CheckpointRequest request;
    request.target = CgroupTarget{cgroup->path()};
    request.main_pid = second;
    checkpoint_and_kill(request, 2);
    ScopedFd directory(open(cgroup->path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    // As siblings they are not our children, but those of the init that started us.
    build([&](RestoreRequest& restore) {
        restore.parent = RestoreRequest::Parent::kSibling;
        restore.cgroup_fd = directory.get();
    });
    EXPECT_EQ(cgroup->members(), (std::set<pid_t>{first}));
    std::ifstream members(below + "/cgroup.procs");
    EXPECT_EQ((std::set<pid_t>{std::istream_iterator<pid_t>(members), {}}), std::set<pid_t>{second});
    EXPECT_EQ(all_.front(), second);
    for (pid_t pid : all_) {
        std::string status = text_of(fmt::format("/proc/{}/status", pid));
        EXPECT_NE(status.find(fmt::format("PPid:\t{}\n", getppid())), std::string::npos) << status;
    }
    expect_good_reports(2);
    for (pid_t pid : all_)
        kill(pid, SIGKILL);
}

// Two processes with a pipe between them, whose memory changes all the time. Page N of `memory` holds the last
// number that went through and leaves N as its rest.
class Stream {
  public:
    static constexpr uint64_t kPages = 600;

    void pass(uint64_t number) {
        last_ = number;
        memory_[number % kPages].fill(number);
    }
    void expect_in_step(Trip& trip, const std::string& who) const {
        for (uint64_t page = 0; page < kPages && last_ > kPages; page++) {
            uint64_t expected = last_ - (last_ + kPages - page) % kPages;
            for (uint64_t word : memory_[page])
                if (word != expected)
                    return trip.same(word, expected, fmt::format("{}: page {}", who, page));
        }
    }
    uint64_t last() const { return last_; }

  private:
    uint64_t last_ = 0;
    std::vector<std::array<uint64_t, kPage / sizeof(uint64_t)>> memory_{kPages};
};

void receive(Trip& trip, int from) {
    Stream stream;
    uint64_t number = 0;
    while (read(from, &number, sizeof(number)) == ssize_t{sizeof(number)}) {
        trip.same(number, stream.last() + 1, "received");
        stream.pass(number);
    }
    stream.expect_in_step(trip, "receiver");
    trip.end();
}

// Until `go` is there; `sent` is shared with the test.
void send(Trip& trip, int to, const std::string& go, std::atomic<uint64_t>& sent) {
    Stream stream;
    bool child_seen = false;
    for (uint64_t number = 1; access(go.c_str(), F_OK) != 0; number++) {
        trip.same(write(to, &number, sizeof(number)), ssize_t{sizeof(number)}, "written");
        stream.pass(number);
        sent = number;
        siginfo_t info{};
        child_seen |= waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT | __WALL) != 0 || info.si_pid != 0;
    }
    trip.expect(!child_seen, "saw a child that is not its own");
    stream.expect_in_step(trip, "sender");
}

// What is done while the copies are written.
class StepHook : public SilentSteps {
  public:
    explicit StepHook(std::function<void()> act) : act_(std::move(act)) {}
    Result<void> enter(std::string_view step) override {
        if (step == "checkpoint.copies")
            act_();
        return {};
    }

  private:
    std::function<void()> act_;
};

// The image holds one moment of both, though they go on while it is written.
TEST_F(RoundTrip, OfASnapshot) {
    auto cgroup = std::make_unique<Cgroup>();
    if (cgroup->path().empty())
        GTEST_SKIP() << "no cgroup2";
    auto* sent = new (mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))
        std::atomic<uint64_t>(0);
    pid_t first = start([&](Trip& trip) {
        int ends[2];
        trip.same(pipe(ends), 0, "pipe");
        while (access((dir_ + "/start").c_str(), F_OK) != 0)
            usleep(1000);
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            close(ends[1]);
            receive(trip, ends[0]);
        }
        close(ends[0]);
        send(trip, ends[1], dir_ + "/go", *sent);
        close(ends[1]);
    });
    cgroup->add(first);
    std::ofstream(dir_ + "/start");
    auto wait_for = [sent](uint64_t number) {
        for (int i = 0; i < 60'000 && *sent < number; i++)
            usleep(1000);
        EXPECT_GE(*sent, number);
    };
    wait_for(2 * Stream::kPages);
    std::set<pid_t> members = cgroup->members();
    EXPECT_EQ(members.size(), 2u);

    CheckpointRequest request;
    request.target = CgroupTarget{cgroup->path()};
    request.image_dir_fd = image_.get();
    request.goes_on = true;
    request.copies_from = 0;
    CheckpointStats stats;
    StepHook steps([&] {  // until each page has been written anew
        wait_for(*sent + 3 * Stream::kPages);
        EXPECT_EQ(cgroup->members(), members) << "copies are no members";
    });
    auto held = checkpoint(request, steps, stats);
    ASSERT_TRUE(held) << held.error().text();
    EXPECT_EQ(stats.copies, 2u);
    auto pids = held->pids();
    ASSERT_TRUE(held->resume());
    ASSERT_TRUE(held->finish(steps, stats));
    wait_for(*sent + 100);
    for (pid_t pid : pids)
        kill(pid, SIGKILL);
    wait_for_end(pids);

    build();
    if (!HasFatalFailure())
        expect_good_reports(2);
    munmap(sent, kPage);
}

}  // namespace
}  // namespace checkpointd

int main(int argc, char** argv) {
    return checkpointd::run_tests_with_own_pids(argc, argv);
}
