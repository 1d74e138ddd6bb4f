// SPDX-License-Identifier: LGPL-2.1-or-later
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <functional>
#include <map>
#include <grp.h>
#include <sched.h>
#include <set>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include "core/base/io.h"
#include "core/checkpoint/bare_process_test_util.h"
#include "core/checkpoint/checkpoint.h"
#include "core/checkpoint/page_in_image_test_util.h"
#include "core/kernel/page_scan.h"
#include "core/kernel/proc_status.h"
#include "core/kernel/proc_task.h"
#include "images/constants.h"
#include "images/image_dir.h"
#include "images/proto/core.pb.h"
#include "images/proto/inventory.pb.h"
#include "images/proto/memory.pb.h"
#include "images/proto/stats.pb.h"
#include "images/proto/tasks.pb.h"
#include "images/test_dir.h"

namespace checkpointd {
namespace {

using images::ImageDir;
using images::ImageType;
using images::TestDir;

// What a victim and the test both see.
struct Shared {
    std::atomic<uint64_t> beats;   // the victim counts while it runs
    std::atomic<uint64_t> signals;  // SIGUSR1 that it handled
    std::atomic<int> ready;
    uint64_t private_page;    // address of a page that it filled with 0x5a
    uint64_t shared_memory;   // address of 4 shared pages, the third filled with 0x6b
    uint64_t handler;         // of SIGUSR1
    uint64_t signal_stack;
    int timer;
    pid_t thread;
};

// A process of its own session that prepares itself, says so, and then counts.
class Victim {
  public:
    explicit Victim(const std::function<void(Shared&)>& prepare, bool counts = true) {
        shared_ = static_cast<Shared*>(mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE,
                                            MAP_SHARED | MAP_ANONYMOUS, -1, 0));
        pid_ = fork();
        if (pid_ == 0)
            live(prepare, counts);
        while (!shared_->ready)
            usleep(1000);
    }
    ~Victim() {
        kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
        munmap(shared_, sizeof(Shared));
    }
    pid_t pid() const { return pid_; }
    Shared& shared() { return *shared_; }

    // It runs, nobody traces it, and no thread is stopped.
    void expect_undisturbed() {
        uint64_t before = shared_->beats;
        for (int i = 0; i < 60'000 && shared_->beats <= before + 1; ++i)
            usleep(1000);
        EXPECT_GT(shared_->beats, before + 1);
        auto tids = read_task_list(pid_);
        ASSERT_TRUE(tids);
        for (pid_t tid : *tids) {
            auto status = read_thread_status(pid_, tid);
            ASSERT_TRUE(status);
            EXPECT_EQ(status->tracer_pid, 0);
            EXPECT_THAT(status->state, testing::AnyOf('R', 'S', 'D'));
        }
    }

  private:
    [[noreturn]] void live(const std::function<void(Shared&)>& prepare, bool counts) {
        become_bare_process();
        prepare(*shared_);
        shared_->ready = 1;
        for (;;) {
            if (counts)
                ++shared_->beats;
            usleep(1000);
        }
    }

    Shared* shared_;
    pid_t pid_;
};

CheckpointRequest request_for(pid_t pid, const TestDir& dir) {
    CheckpointRequest request;
    request.target = TreeTarget{pid};
    request.image_dir_fd = dir.fd();
    return request;
}

class Checkpoint : public testing::Test {
  protected:
    TestDir tmp;
    ImageDir dir = *ImageDir::open(AT_FDCWD, tmp.path());
    SilentSteps silent;
    CheckpointStats stats;

    void dump(pid_t pid) {
        auto held = checkpoint(request_for(pid, tmp), silent, stats);
        ASSERT_TRUE(held) << held.error().text();
        auto resumed = held->resume();
        ASSERT_TRUE(resumed) << resumed.error().text();
    }
    images::core_entry core(pid_t tid) {
        auto entry = dir.read_one<images::core_entry>(ImageType::kCore, static_cast<uint64_t>(tid));
        EXPECT_TRUE(entry) << entry.error().text();
        return entry ? *entry : images::core_entry{};
    }
    images::mm_entry mm(pid_t pid) {
        return *dir.read_one<images::mm_entry>(ImageType::kMm, static_cast<uint64_t>(pid));
    }
    std::string page(ImageType type, uint64_t id, uint64_t address) {
        return page_in_image(dir, type, id, address);
    }
};

Shared* the_shared;  // of the victim: for its signal handler

void prepare_signals(Shared& shared) {
    the_shared = &shared;
    struct sigaction action {};
    action.sa_handler = [](int) { ++the_shared->signals; };
    action.sa_flags = SA_RESTART | SA_ONSTACK;
    sigaddset(&action.sa_mask, SIGHUP);
    sigaction(SIGUSR1, &action, nullptr);
    shared.handler = reinterpret_cast<uint64_t>(action.sa_handler);
    signal(SIGPIPE, SIG_IGN);
    struct sigaction child {};
    child.sa_handler = SIG_DFL;
    child.sa_flags = SA_NOCLDWAIT;
    sigaction(SIGCHLD, &child, nullptr);

    stack_t stack{};
    stack.ss_size = 65536;
    stack.ss_sp = malloc(stack.ss_size);
    shared.signal_stack = reinterpret_cast<uint64_t>(stack.ss_sp);
    sigaltstack(&stack, nullptr);

    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR2);
    sigprocmask(SIG_BLOCK, &blocked, nullptr);
    union sigval value {};
    value.sival_int = 4711;
    sigqueue(getpid(), SIGUSR2, value);
}

void prepare_memory(Shared& shared) {
    auto* memory = static_cast<char*>(
        mmap(nullptr, 4 * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    memset(memory + kPageSize, 0x5a, kPageSize);
    mprotect(memory + kPageSize, kPageSize, PROT_NONE);
    madvise(memory, kPageSize, MADV_DONTFORK);
    shared.private_page = reinterpret_cast<uint64_t>(memory) + kPageSize;
    auto* common = static_cast<char*>(
        mmap(nullptr, 4 * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    memset(common + 2 * kPageSize, 0x6b, kPageSize);
    shared.shared_memory = reinterpret_cast<uint64_t>(common);
}

void prepare_timers(Shared& shared) {
    itimerval interval{{100, 0}, {5000, 0}};
    setitimer(ITIMER_REAL, &interval, nullptr);
    sigevent event{};
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGUSR2;
    event.sigev_value.sival_ptr = reinterpret_cast<void*>(0x1234567890);
    itimerspec left{{7, 0}, {700, 0}};
    syscall(SYS_timer_create, CLOCK_BOOTTIME, &event, &shared.timer);
    syscall(SYS_timer_settime, shared.timer, 0, &left, nullptr);
}

void prepare_traits() {
    rlimit files{100, 200};
    setrlimit(RLIMIT_NOFILE, &files);
    setpriority(PRIO_PROCESS, 0, 7);
    prctl(PR_SET_NAME, "odd ) name");
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    prctl(PR_SET_TIMERSLACK, 123456);
    prctl(PR_SET_DUMPABLE, 0);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    gid_t groups[] = {5, 6, 7};
    setgroups(3, groups);
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(0, &cpus);
    sched_setaffinity(0, sizeof(cpus), &cpus);
}

void prepare_rich(Shared& shared) {
    prepare_signals(shared);
    prepare_memory(shared);
    prepare_timers(shared);
    prepare_traits();
}

TEST_F(Checkpoint, ImagesTellWhatTheVictimKnows) {
    Victim victim(prepare_rich);
    dump(victim.pid());
    victim.expect_undisturbed();
    images::core_entry entry = core(victim.pid());
    const images::task_core_entry& task = entry.tc();
    EXPECT_EQ(task.comm(), "odd ) name");
    EXPECT_EQ(task.task_state(), images::kTaskAlive);
    EXPECT_TRUE(task.child_subreaper());
    EXPECT_EQ(task.blk_sigset(), 1u << (SIGUSR2 - 1));
    EXPECT_EQ(task.rlimits().rlimits(RLIMIT_NOFILE).cur(), 100u);
    EXPECT_EQ(task.rlimits().rlimits(RLIMIT_NOFILE).max(), 200u);
    ASSERT_EQ(task.sigactions_size(), 62);
    auto action = [&task](int signal) {  // SIGKILL and SIGSTOP are left out
        return task.sigactions(signal - 1 - (signal > SIGKILL) - (signal > SIGSTOP));
    };
    EXPECT_EQ(action(SIGUSR1).sigaction(), victim.shared().handler);
    EXPECT_EQ(action(SIGUSR1).mask(), 1u << (SIGHUP - 1));
    EXPECT_EQ(action(SIGUSR1).flags() & 0xffffffff & (SA_RESTART | SA_ONSTACK),
              uint64_t{SA_RESTART | SA_ONSTACK});
    EXPECT_EQ(action(SIGPIPE).sigaction(), reinterpret_cast<uint64_t>(SIG_IGN));
    EXPECT_EQ(action(SIGCHLD).flags() & SA_NOCLDWAIT, uint64_t{SA_NOCLDWAIT});
    EXPECT_EQ(action(SIGTERM).sigaction(), 0u);
    ASSERT_EQ(task.signals_s().signals_size(), 1);
    siginfo_t info;
    memcpy(&info, task.signals_s().signals(0).siginfo().data(), sizeof(info));
    EXPECT_EQ(info.si_signo, SIGUSR2);
    EXPECT_EQ(info.si_value.sival_int, 4711);
    EXPECT_EQ(info.si_pid, victim.pid());
}

TEST_F(Checkpoint, Timers) {
    Victim victim(prepare_rich);
    dump(victim.pid());
    images::core_entry entry = core(victim.pid());
    const images::task_timers_entry& timers = entry.tc().timers();
    EXPECT_EQ(timers.real().isec(), 100u);
    EXPECT_THAT(timers.real().vsec(), testing::AllOf(testing::Gt(4900u), testing::Le(5000u)));
    EXPECT_EQ(timers.prof().isec() + timers.prof().vsec(), 0u);
    ASSERT_EQ(timers.posix_size(), 1);
    EXPECT_EQ(timers.posix(0).it_id(), static_cast<uint32_t>(victim.shared().timer));
    EXPECT_EQ(timers.posix(0).clock_id(), uint32_t{CLOCK_BOOTTIME});
    EXPECT_EQ(timers.posix(0).si_signo(), uint32_t{SIGUSR2});
    EXPECT_EQ(timers.posix(0).sival_ptr(), 0x1234567890u);
    EXPECT_EQ(timers.posix(0).isec(), 7u);
    EXPECT_THAT(timers.posix(0).vsec(), testing::AllOf(testing::Gt(600u), testing::Lt(700u)));
}

TEST_F(Checkpoint, ThreadState) {
    Victim victim(prepare_rich);
    dump(victim.pid());
    images::core_entry entry = core(victim.pid());
    const images::thread_core_entry& thread = entry.thread_core();
    EXPECT_EQ(thread.sched_nice(), 7);
    EXPECT_EQ(thread.sas().ss_sp(), victim.shared().signal_stack);
    EXPECT_EQ(thread.sas().ss_size(), 65536u);
    EXPECT_EQ(thread.pdeath_sig(), uint32_t{SIGKILL});
    EXPECT_EQ(thread.comm(), "odd ) name");
    EXPECT_EQ(thread.creds().no_new_privs(), 1u);
    EXPECT_THAT(thread.creds().groups(), testing::ElementsAre(5, 6, 7));
    EXPECT_EQ(thread.creds().euid(), geteuid());
    EXPECT_EQ(thread.creds().cap_bnd_size(), 2);
    EXPECT_NE(thread.futex_rla(), 0u);
    EXPECT_NE(entry.thread_info().clear_tid_addr(), 0u);
    EXPECT_NE(entry.thread_info().gpregs().fs_base(), 0u);
    EXPECT_EQ(entry.thread_info().tls_size(), 3);
    auto extra = dir.read_all<images::process_extra_entry>(ImageType::kTasks);
    ASSERT_TRUE(extra && extra->size() == 1);
    EXPECT_EQ(extra->at(0).threads(0).timer_slack_ns(), 123456u);
    EXPECT_EQ(extra->at(0).threads(0).cpus()[0], 1);
    EXPECT_GE(extra->at(0).threads(0).xstate().size(), 576u);
}

TEST_F(Checkpoint, Memory) {
    Victim victim(prepare_rich);
    dump(victim.pid());
    auto pid = static_cast<uint64_t>(victim.pid());
    images::mm_entry entry = mm(victim.pid());
    EXPECT_EQ(entry.dumpable(), 0);
    std::map<uint64_t, images::vma_entry> vmas;
    for (const auto& vma : entry.vmas())
        vmas[vma.start()] = vma;
    uint64_t address = victim.shared().private_page;
    EXPECT_EQ(vmas[address].prot(), uint32_t{PROT_NONE});
    EXPECT_EQ(vmas[address].status(), images::kVmaRegular | images::kVmaAnonPrivate);
    EXPECT_EQ(vmas[address - kPageSize].madv(), 1u << MADV_DONTFORK);
    EXPECT_EQ(page(ImageType::kPagemap, pid, address), std::string(kPageSize, 0x5a));
    EXPECT_EQ(page(ImageType::kPagemap, pid, address - kPageSize), "");
    const images::vma_entry& shared = vmas[victim.shared().shared_memory];
    EXPECT_EQ(shared.status(), images::kVmaRegular | images::kVmaAnonShared);
    EXPECT_EQ(shared.flags(), uint32_t{MAP_SHARED | MAP_ANONYMOUS});
    EXPECT_EQ(page(ImageType::kPagemapShmem, shared.shmid(), 2 * kPageSize),
              std::string(kPageSize, 0x6b));
    EXPECT_EQ(page(ImageType::kPagemapShmem, shared.shmid(), kPageSize), "");
    uint64_t size = std::filesystem::file_size(tmp.path() + "/pages-1.img");
    EXPECT_EQ(stats.pages_written * kPageSize, size);
    auto figures = dir.read_one<images::stats_entry>(ImageType::kStatsDump);
    ASSERT_TRUE(figures);
    EXPECT_EQ(figures->dump().pages_written(), stats.pages_written);
}

// It says that it is ready once it has them.
[[noreturn]] void spin_with_known_registers(std::atomic<int>& ready) {
    asm volatile(
        "mov $0x1111111111111111, %%rbx\n"
        "mov $0x2222222222222222, %%r12\n"
        "mov $0x3333333333333333, %%r15\n"
        "mov $0x4444444444444444, %%rax\n"
        "movq %%rax, %%xmm7\n"
        "movl $1, (%0)\n"
        "1: pause\n"
        "jmp 1b\n" ::"D"(&ready)
        : "memory", "rbx", "r12", "r15", "rax", "xmm7");
    __builtin_unreachable();
}

TEST_F(Checkpoint, RegistersOfARunningThread) {
    Victim victim([](Shared& shared) { spin_with_known_registers(shared.ready); });
    dump(victim.pid());
    images::core_entry entry = core(victim.pid());
    const auto& regs = entry.thread_info().gpregs();
    EXPECT_EQ(regs.bx(), 0x1111111111111111u);
    EXPECT_EQ(regs.r12(), 0x2222222222222222u);
    EXPECT_EQ(regs.r15(), 0x3333333333333333u);
    EXPECT_EQ(regs.orig_ax(), ~uint64_t{0});
    const auto& fpregs = entry.thread_info().fpregs();
    EXPECT_EQ(fpregs.xmm_space(28), 0x44444444u);
    EXPECT_EQ(fpregs.xmm_space(29), 0x44444444u);
    EXPECT_EQ(fpregs.cwd(), 0x37fu);
}

TEST_F(Checkpoint, ThreadsAndChildren) {
    Victim victim([](Shared& shared) {
        std::thread([&shared] {
            shared.thread = gettid();
            prctl(PR_SET_NAME, "second");
            for (;;)
                pause();
        }).detach();
        while (shared.thread == 0)
            usleep(100);
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (;;)
                pause();
        }
        if (fork() == 0)
            _exit(3);
        siginfo_t dead;
        waitid(P_ALL, 0, &dead, WEXITED | WNOWAIT);
    });
    dump(victim.pid());
    victim.expect_undisturbed();
    auto tree = dir.read_all<images::pstree_entry>(ImageType::kPstree);
    ASSERT_TRUE(tree);
    ASSERT_EQ(tree->size(), 3u);
    EXPECT_EQ(stats.tasks, 3u);
    EXPECT_EQ(stats.threads, 3u);
    EXPECT_EQ(tree->at(0).pid(), static_cast<uint32_t>(victim.pid()));
    EXPECT_EQ(tree->at(0).ppid(), 0u);
    EXPECT_EQ(tree->at(0).sid(), tree->at(0).pid());
    EXPECT_THAT(tree->at(0).threads(),
                testing::ElementsAre(victim.pid(), victim.shared().thread));
    EXPECT_EQ(core(victim.shared().thread).thread_core().comm(), "second");
    EXPECT_FALSE(core(victim.shared().thread).has_tc());
    unsigned zombies = 0;
    for (size_t i : {1, 2}) {
        EXPECT_EQ(tree->at(i).ppid(), tree->at(0).pid());
        images::core_entry child = core(static_cast<pid_t>(tree->at(i).pid()));
        if (child.tc().task_state() != images::kTaskDead)
            continue;
        ++zombies;
        EXPECT_EQ(child.tc().exit_code(), 3u << 8);
    }
    EXPECT_EQ(zombies, 1u);
}

// Refuses the step whose turn it is.
class FailingSteps : public Steps {
  public:
    explicit FailingSteps(unsigned fail_at) : fail_at_(fail_at) {}
    Result<void> enter(std::string_view step) override {
        if (seen_++ != fail_at_)
            return {};
        failed_ = step;
        return fail(ErrorKind::kCancelled, std::string(step), "refused by the test");
    }
    const std::string& failed() const { return failed_; }

  private:
    unsigned fail_at_;
    unsigned seen_ = 0;
    std::string failed_;
};

TEST_F(Checkpoint, EveryStepMayFail) {
    Victim victim(prepare_rich);
    std::set<std::string> steps;
    for (unsigned n = 0;; ++n) {
        TestDir target;
        FailingSteps failing(n);
        auto held = checkpoint(request_for(victim.pid(), target), failing, stats);
        if (held)
            break;
        EXPECT_EQ(held.error().kind, ErrorKind::kCancelled) << held.error().text();
        steps.insert(failing.failed());
        victim.expect_undisturbed();
        ASSERT_LT(n, 100u);
    }
    EXPECT_THAT(steps, testing::IsSupersetOf({"checkpoint.collect", "checkpoint.observe",
                                              "checkpoint.ask", "checkpoint.memory",
                                              "checkpoint.finish"}));
    kill(victim.pid(), SIGUSR1);
    victim.expect_undisturbed();  // it went on counting, after its handler
    EXPECT_EQ(victim.shared().signals, 1u);
}

TEST_F(Checkpoint, BlockersComeAllAtOnceBeforeAnyFile) {
    Victim victim([](Shared& shared) {
        void* huge = mmap(nullptr, 2u << 20, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE, -1, 0);
        (void)huge;
        unsigned long context = 0;
        syscall(SYS_io_setup, 8, &context);
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            unshare(CLONE_NEWUTS);
            shared.thread = 1;
            for (;;)
                pause();
        }
        while (const_cast<volatile pid_t&>(shared.thread) == 0)
            usleep(1000);
    });
    auto held = checkpoint(request_for(victim.pid(), tmp), silent, stats);
    ASSERT_FALSE(held);
    EXPECT_EQ(held.error().kind, ErrorKind::kUnsupported) << held.error().text();
    std::string text = held.error().text();
    EXPECT_THAT(text, testing::HasSubstr("Linux AIO"));
    EXPECT_THAT(text, testing::HasSubstr("uts namespace"));
    EXPECT_TRUE(std::filesystem::is_empty(tmp.path()));
    victim.expect_undisturbed();
}

TEST_F(Checkpoint, HeldUntilToldAndEndedWhenTold) {
    Victim victim([](Shared&) {});
    auto held = checkpoint(request_for(victim.pid(), tmp), silent, stats);
    ASSERT_TRUE(held) << held.error().text();
    EXPECT_THAT(held->pids(), testing::ElementsAre(victim.pid()));
    uint64_t beats = victim.shared().beats;
    usleep(20000);
    EXPECT_EQ(victim.shared().beats, beats);
    ASSERT_TRUE(held->kill());
    EXPECT_TRUE(held->pids().empty());
    waitpid(victim.pid(), nullptr, WNOHANG);  // in case the tracer's wait has not taken it
    EXPECT_EQ(kill(victim.pid(), 0), -1);
    EXPECT_EQ(errno, ESRCH);
}

TEST_F(Checkpoint, DeadlineThatHasPassed) {
    Victim victim([](Shared&) {});
    CheckpointRequest request = request_for(victim.pid(), tmp);
    request.deadline = std::chrono::steady_clock::now();
    auto held = checkpoint(request, silent, stats);
    ASSERT_FALSE(held);
    EXPECT_EQ(held.error().kind, ErrorKind::kTimeout);
    victim.expect_undisturbed();
}

// What the victim of the interop test writes into its file, again and again.
struct Report {
    uint64_t beats;
    uint64_t memory_is_right;
    uint64_t shared_is_right;
    uint64_t thread_beats;
    uint64_t timer_seconds;
    uint64_t blocked;
};

[[noreturn]] void report_for_ever(Shared& shared, const std::string& path) {
    int fd = open(path.c_str(), O_RDWR | O_CREAT, 0600);
    static std::atomic<uint64_t> thread_beats;
    std::thread([] {
        for (;; ++thread_beats)
            usleep(1000);
    }).detach();
    std::string filled(kPageSize, 0x5a);
    std::string common(kPageSize, 0x6b);
    for (Report report{};; usleep(1000)) {
        ++report.beats;
        auto* page = reinterpret_cast<char*>(shared.private_page);
        mprotect(page, kPageSize, PROT_READ);
        report.memory_is_right = memcmp(page, filled.data(), kPageSize) == 0;
        mprotect(page, kPageSize, PROT_NONE);
        auto* memory = reinterpret_cast<char*>(shared.shared_memory) + 2 * kPageSize;
        report.shared_is_right = memcmp(memory, common.data(), kPageSize) == 0;
        report.thread_beats = thread_beats;
        itimerspec left{};
        syscall(SYS_timer_gettime, shared.timer, &left);
        report.timer_seconds = static_cast<uint64_t>(left.it_value.tv_sec);
        sigset_t blocked;
        sigprocmask(SIG_SETMASK, nullptr, &blocked);
        report.blocked = sigismember(&blocked, SIGUSR2) == 1 && sigismember(&blocked, SIGHUP) == 0;
        (void)!pwrite(fd, &report, sizeof(report), 0);
        shared.ready = 1;
    }
}

Report read_report(const std::string& path) {
    Report report{};
    ScopedFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    EXPECT_EQ(pread(fd.get(), &report, sizeof(report), 0), ssize_t{sizeof(report)});
    return report;
}

// CRIU_PEER names a CRIU of version 4; it has to bring back what we dumped.
TEST_F(Checkpoint, CriuRestoresOurImages) {
    const char* peer = getenv("CRIU_PEER");
    if (!peer)
        GTEST_SKIP() << "CRIU_PEER is not set";
    TestDir files;
    std::string path = files.path() + "/report";
    Victim victim([&path](Shared& shared) {
        prctl(PR_SET_PDEATHSIG, 0);  // CRIU's own helper would be the parent
        prepare_rich(shared);
        report_for_ever(shared, path);
    });
    auto held = checkpoint(request_for(victim.pid(), tmp), silent, stats);
    ASSERT_TRUE(held) << held.error().text();
    ASSERT_TRUE(held->kill());
    waitpid(victim.pid(), nullptr, WNOHANG);
    Report before = read_report(path);
    std::string log = tmp.path() + "/restore.log";
    std::string command = fmt::format("{} restore -d -D {} -o {} -v4", peer, tmp.path(), log);
    int status = system(command.c_str());
    ASSERT_EQ(status, 0) << *read_file(AT_FDCWD, log);
    Report after = read_report(path);
    for (int i = 0; i < 60'000 && (after.beats <= before.beats + 5 ||
                                   after.thread_beats <= before.thread_beats + 5);
         i++, usleep(1000))
        after = read_report(path);
    EXPECT_GT(after.beats, before.beats + 5);
    EXPECT_GT(after.thread_beats, before.thread_beats + 5);
    EXPECT_TRUE(after.memory_is_right);
    EXPECT_TRUE(after.shared_is_right);
    EXPECT_TRUE(after.blocked);
    EXPECT_THAT(after.timer_seconds, testing::AllOf(testing::Gt(600u), testing::Le(700u)));
    EXPECT_EQ(read_status(victim.pid())->name, "odd ) name");
    kill(victim.pid(), SIGKILL);
}

}  // namespace
}  // namespace checkpointd
