// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The whole way back, from images that the test writes itself to programs that check from inside what
// they were given. The restored code is `payload_*` below, copied into the image.
#include "core/restore/restore.h"

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <random>
#include <set>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include <fmt/core.h>

#include "core/resources/files.h"
#include "core/restore/executor/region.h"
#include "core/restore/forest_images.h"
#include "core/restore/own_pids_test_util.h"
#include "core/restore/program/print.h"
#include "images/constants.h"
#include "images/proto/files.pb.h"
#include "restorer/interpreter.h"

namespace checkpointd {
namespace {

constexpr uint64_t kCode = 0x10000000;
constexpr uint64_t kData = 0x20000000;
constexpr uint64_t kStack = 0x30000000;
constexpr uint64_t kPage = 4096;
constexpr int kFilteredErrno = 42;
constexpr char kWaiting[] = "waiting, ";             // in the pipe, in the image
constexpr int64_t kPiped = sizeof(kWaiting) - 1 + 6;  // and what the parent finds in the file
constexpr int kPipeIn = 4, kPipeOut = 7;
constexpr uint32_t kExeId = 1, kRootId = 2, kReaderId = 3, kWriterId = 4, kPipeId = 77;
constexpr uint32_t kUmask = 027;

// What a restored program finds out; lies at kData. The first part is in the image.
struct Findings {
    char path[64];            // in
    timespec deadline;        // in: absolute, CLOCK_MONOTONIC
    timespec beat;            // in: pause of the thread
    int64_t zombie;           // in: child to reap, or 0
    int64_t pipe_in, pipe_out;  // in: descriptors, or 0
    int64_t piped_size;
    char piped[32];
    int64_t pid, tid, sid, pgid, filtered, slept, file_size, zombie_status, zombie_pid;
    timespec woken;
    uint64_t xmm;
    char content[32];
    int64_t thread_tid;
    volatile uint64_t thread_beats;
    volatile uint64_t done;
};

// A sanitizer's runtime does not come along.
#define PAYLOAD             \
    extern "C" __attribute__( \
        (section("payload"), used, noinline, no_sanitize("address", "undefined")))

PAYLOAD __attribute__((noreturn)) void payload_main(Findings* found) {
    uint64_t xmm;
    asm volatile("movq %%xmm7, %0" : "=r"(xmm));
    auto call = [](uint64_t nr, uint64_t a = 0, uint64_t b = 0, uint64_t c = 0,
                   uint64_t d = 0) __attribute__((always_inline)) {
        return restorer::raw_syscall(nr, a, b, c, d);
    };
    found->xmm = xmm;
    found->pid = call(SYS_getpid);
    found->tid = call(SYS_gettid);
    found->sid = call(SYS_getsid);
    found->pgid = call(SYS_getpgid);
    found->filtered = call(SYS_getppid);
    found->slept = call(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME,
                        reinterpret_cast<uint64_t>(&found->deadline));
    call(SYS_clock_gettime, CLOCK_MONOTONIC, reinterpret_cast<uint64_t>(&found->woken));
    int64_t fd = call(SYS_openat, static_cast<uint64_t>(AT_FDCWD),
                      reinterpret_cast<uint64_t>(found->path), O_RDONLY);
    found->file_size = call(SYS_read, static_cast<uint64_t>(fd),
                            reinterpret_cast<uint64_t>(found->content), sizeof(found->content));
    call(SYS_close, static_cast<uint64_t>(fd));
    int status = 0;
    if (found->zombie != 0)
        found->zombie_pid = call(SYS_wait4, static_cast<uint64_t>(found->zombie),
                                 reinterpret_cast<uint64_t>(&status), 0, 0);
    found->zombie_status = status;
    if (found->pipe_out != 0)
        call(SYS_write, static_cast<uint64_t>(found->pipe_out),
             reinterpret_cast<uint64_t>(found->content), static_cast<uint64_t>(found->file_size));
    int64_t got = 0;
    while (found->pipe_in != 0 && found->piped_size < kPiped && got >= 0) {
        got = call(SYS_read, static_cast<uint64_t>(found->pipe_in),
                   reinterpret_cast<uint64_t>(found->piped) +
                       static_cast<uint64_t>(found->piped_size),
                   static_cast<uint64_t>(kPiped - found->piped_size));
        found->piped_size += got;
    }
    found->done = 1;
    for (;;)
        call(SYS_pause);
}

PAYLOAD __attribute__((noreturn)) void payload_thread(Findings* found) {
    found->thread_tid = restorer::raw_syscall(SYS_gettid);
    for (;;) {
        found->thread_beats = found->thread_beats + 1;
        restorer::raw_syscall(SYS_nanosleep, reinterpret_cast<uint64_t>(&found->beat), 0);
    }
}

extern "C" const char __start_payload[];
extern "C" const char __stop_payload[];

template <typename Function>
uint64_t code_address(Function* function) {
    return kCode + (reinterpret_cast<uint64_t>(function) -
                    reinterpret_cast<uint64_t>(__start_payload));
}

// Writes an image of small made-up processes.
class ImageBuilder {
  public:
    explicit ImageBuilder(const std::string& path)
        : dir_(*images::ImageDir::open(AT_FDCWD, path)) {
        regular(kExeId, std::filesystem::read_symlink("/proc/self/exe"), S_IFREG | 0755);
        regular(kRootId, "/", S_IFDIR | 0755);
        images::inventory_entry inventory;
        inventory.set_img_version(images::kImageVersion);
        inventory.set_fdinfo_per_id(true);
        write(images::ImageType::kInventory, 0, {&inventory});
        filter();
    }

    void clocks(int64_t monotonic, int64_t boottime) {
        images::timens_entry clocks;
        clocks.mutable_monotonic()->set_tv_sec(static_cast<uint64_t>(monotonic));
        clocks.mutable_monotonic()->set_tv_nsec(0);
        clocks.mutable_boottime()->set_tv_sec(static_cast<uint64_t>(boottime));
        clocks.mutable_boottime()->set_tv_nsec(0);
        write(images::ImageType::kTimens, 0, {&clocks});
    }

    void task(pid_t pid, pid_t parent, pid_t group, pid_t session, const Findings& data,
              std::vector<pid_t> threads = {}) {
        entry(pid, parent, group, session, threads);
        images::core_entry core = this->core(pid, code_address(payload_main), 0);
        core.mutable_tc()->set_task_state(images::kTaskAlive);
        write(images::ImageType::kCore, pid, {&core});
        uint64_t stack = 1;
        for (pid_t tid : threads) {
            images::core_entry thread = this->core(tid, code_address(payload_thread), stack++);
            thread.clear_tc();
            write(images::ImageType::kCore, tid, {&thread});
        }
        images::task_kobj_ids_entry ids;
        ids.set_vm_id(static_cast<uint32_t>(pid)), ids.set_files_id(static_cast<uint32_t>(pid));
        ids.set_fs_id(static_cast<uint32_t>(pid)), ids.set_sighand_id(static_cast<uint32_t>(pid));
        write(images::ImageType::kIds, pid, {&ids});
        files_.tables[static_cast<uint32_t>(pid)];
        files_.fs[pid].set_cwd_id(kRootId), files_.fs[pid].set_root_id(kRootId);
        files_.fs[pid].set_umask(kUmask);
        memory(pid, data);
    }

    // A pipe from one to the other, in which something waits.
    void pipe(pid_t from, pid_t to) {
        pipe_end(kWriterId, O_WRONLY, from, kPipeOut);
        pipe_end(kReaderId, O_RDONLY, to, kPipeIn);
        files_.pipes[kPipeId].bytes = kWaiting;
    }

    void zombie(pid_t pid, pid_t parent, pid_t group, pid_t session, uint32_t status) {
        entry(pid, parent, group, session, {});
        images::core_entry core;
        core.set_mtype(images::core_entry::X86_64);
        task_part(core);
        core.mutable_tc()->set_task_state(images::kTaskDead);
        core.mutable_tc()->set_exit_code(status);
        write(images::ImageType::kCore, pid, {&core});
    }

    void finish() {
        std::vector<const google::protobuf::MessageLite*> all;
        for (const auto& entry : entries_)
            all.push_back(&entry);
        write(images::ImageType::kPstree, 0, all);
        auto written = write_file_images(files_, dir_.fd());
        ASSERT_TRUE(written) << written.error().text();
    }

  private:
    void write(images::ImageType type, int64_t id,
               std::vector<const google::protobuf::MessageLite*> records) {
        auto writer = dir_.create(type, static_cast<uint64_t>(id));
        ASSERT_TRUE(writer) << writer.error().text();
        for (const auto* record : records)
            ASSERT_TRUE(writer->record(*record));
        ASSERT_TRUE(writer->finish());
    }

    static void owner(images::fown_entry& owner) {
        owner.set_uid(0), owner.set_euid(0), owner.set_signum(0), owner.set_pid_type(0);
        owner.set_pid(0);
    }

    void regular(uint32_t id, const std::string& name, uint32_t mode) {
        images::file_entry& file = files_.files.emplace_back();
        file.set_type(images::REG), file.set_id(id);
        auto& reg = *file.mutable_reg();
        reg.set_id(id), reg.set_flags(O_RDONLY), reg.set_pos(0), reg.set_name(name);
        reg.set_mode(mode);
        owner(*reg.mutable_fown());
    }

    void pipe_end(uint32_t id, uint32_t flags, pid_t holder, uint32_t fd) {
        images::file_entry& file = files_.files.emplace_back();
        file.set_type(images::PIPE), file.set_id(id);
        auto& end = *file.mutable_pipe();
        end.set_id(id), end.set_pipe_id(kPipeId), end.set_flags(flags);
        owner(*end.mutable_fown());
        images::fdinfo_entry& entry = files_.tables[static_cast<uint32_t>(holder)].emplace_back();
        entry.set_id(id), entry.set_flags(0), entry.set_type(images::PIPE), entry.set_fd(fd);
    }

    void entry(pid_t pid, pid_t parent, pid_t group, pid_t session, std::vector<pid_t> threads) {
        images::pstree_entry entry;
        entry.set_pid(static_cast<uint32_t>(pid)), entry.set_ppid(static_cast<uint32_t>(parent));
        entry.set_pgid(static_cast<uint32_t>(group)), entry.set_sid(static_cast<uint32_t>(session));
        entry.add_threads(static_cast<uint32_t>(pid));
        for (pid_t tid : threads)
            entry.add_threads(static_cast<uint32_t>(tid));
        entries_.push_back(entry);
    }

    static void task_part(images::core_entry& core) {
        auto& tc = *core.mutable_tc();
        tc.set_exit_code(0), tc.set_personality(0), tc.set_flags(0), tc.set_blk_sigset(0);
        tc.set_comm("payload");
    }

    images::core_entry core(pid_t pid, uint64_t start, uint64_t stack) {
        images::core_entry core;
        core.set_mtype(images::core_entry::X86_64);
        task_part(core);
        auto& info = *core.mutable_thread_info();
        info.set_clear_tid_addr(0);
        auto& regs = *info.mutable_gpregs();
        regs.set_r15(0), regs.set_r14(0), regs.set_r13(0), regs.set_r12(0), regs.set_bp(0);
        regs.set_bx(0), regs.set_r11(0), regs.set_r10(0), regs.set_r9(0), regs.set_r8(0);
        regs.set_ax(0), regs.set_cx(0), regs.set_dx(0), regs.set_si(0), regs.set_di(kData);
        regs.set_orig_ax(static_cast<uint64_t>(-1)), regs.set_ip(start), regs.set_cs(0x33);
        regs.set_flags(0x202), regs.set_sp(kStack + (stack + 1) * kPage - 8), regs.set_ss(0x2b);
        regs.set_fs_base(0), regs.set_gs_base(0), regs.set_ds(0), regs.set_es(0), regs.set_fs(0);
        regs.set_gs(0);
        auto& fp = *info.mutable_fpregs();
        fp.set_cwd(0x37f), fp.set_swd(0), fp.set_twd(0), fp.set_fop(0), fp.set_rip(0), fp.set_rdp(0);
        fp.set_mxcsr(0x1f80), fp.set_mxcsr_mask(0xffff);
        for (uint32_t i = 0; i < 64; i++)
            fp.add_xmm_space(i == 28 ? static_cast<uint32_t>(pid) : 0);  // XMM7, lowest word
        auto& thread = *core.mutable_thread_core();
        thread.set_futex_rla(0), thread.set_futex_rla_len(0), thread.set_comm("payload");
        thread.set_seccomp_mode(images::filter), thread.set_seccomp_filter(0);
        return core;
    }

    void memory(pid_t pid, const Findings& data) {
        images::mm_entry mm;
        mm.set_mm_start_code(kCode), mm.set_mm_end_code(kCode + kPage);
        mm.set_mm_start_data(kData), mm.set_mm_end_data(kData + kPage);
        mm.set_mm_start_stack(kStack), mm.set_mm_start_brk(kData + 16 * kPage);
        mm.set_mm_brk(kData + 16 * kPage), mm.set_mm_arg_start(kStack), mm.set_mm_arg_end(kStack);
        mm.set_mm_env_start(kStack), mm.set_mm_env_end(kStack), mm.set_exe_file_id(1);
        mm.set_dumpable(1);
        vma(mm, kCode, 1, PROT_READ | PROT_EXEC);
        vma(mm, kData, 1, PROT_READ | PROT_WRITE);
        vma(mm, kStack, 4, PROT_READ | PROT_WRITE);
        write(images::ImageType::kMm, pid, {&mm});
        std::string pages(2 * kPage, '\0');
        std::memcpy(pages.data(), __start_payload,
                    static_cast<size_t>(__stop_payload - __start_payload));
        std::memcpy(pages.data() + kPage, &data, sizeof(data));
        auto file = dir_.create_raw(images::ImageType::kPages, static_cast<uint64_t>(pid));
        ASSERT_TRUE(file);
        ASSERT_EQ(::write(file->get(), pages.data(), pages.size()),
                  static_cast<ssize_t>(pages.size()));
        images::pagemap_head head;
        head.set_pages_id(static_cast<uint32_t>(pid));
        images::pagemap_entry code = run(kCode), content = run(kData);
        write(images::ImageType::kPagemap, pid, {&head, &code, &content});
    }

    static void vma(images::mm_entry& mm, uint64_t start, uint64_t pages, uint32_t prot) {
        auto& vma = *mm.add_vmas();
        vma.set_start(start), vma.set_end(start + pages * kPage), vma.set_pgoff(0);
        vma.set_shmid(0), vma.set_prot(prot), vma.set_flags(MAP_PRIVATE | MAP_ANONYMOUS);
        vma.set_status(images::kVmaRegular | images::kVmaAnonPrivate), vma.set_fd(-1);
    }

    static images::pagemap_entry run(uint64_t address) {
        images::pagemap_entry run;
        run.set_vaddr(address), run.set_compat_nr_pages(1), run.set_nr_pages(1);
        run.set_flags(images::kPagesPresent);
        return run;
    }

    void filter() {
        sock_filter code[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | kFilteredErrno),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        images::seccomp_entry filters;
        filters.add_seccomp_filters()->set_filter(code, sizeof(code));
        write(images::ImageType::kSeccomp, 0, {&filters});
    }

    images::ImageDir dir_;
    std::vector<images::pstree_entry> entries_;
    FileImages files_;
};

// A number such that it and the next few are free.
pid_t free_pids(pid_t count) {
    std::random_device random;
    for (;;) {
        pid_t base = static_cast<pid_t>(20000 + random() % 12000);
        bool taken = false;
        for (pid_t i = 0; i < count; i++)
            taken = taken || kill(base + i, 0) == 0 || errno == EPERM || kill(-(base + i), 0) == 0;
        if (!taken)
            return base;
    }
}

bool exists(pid_t pid) {
    return std::filesystem::exists("/proc/" + std::to_string(pid));
}

// A process that has this number, and dies with us.
pid_t take_number(pid_t number) {
    clone_args args{};
    args.exit_signal = SIGCHLD;
    args.set_tid = reinterpret_cast<uint64_t>(&number);
    args.set_tid_size = 1;
    pid_t taker = static_cast<pid_t>(syscall(SYS_clone3, &args, sizeof(args)));
    if (taker != 0)
        return taker;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;)
        pause();
}

// All processes in the PID namespace of `init`, but for itself.
// How many PID namespaces a process has a number in.
long depth_of(pid_t pid) {
    std::ifstream status(fmt::format("/proc/{}/status", pid));
    for (std::string line; std::getline(status, line);)
        if (line.starts_with("NSpid:"))
            return std::count(line.begin(), line.end(), '\t');
    return 0;
}

// The dead, which show no namespace but keep their numbers until init has waited for them, among them.
std::set<pid_t> members_of_namespace(pid_t init) {
    namespace fs = std::filesystem;
    std::set<pid_t> members;
    std::error_code gone;
    const auto wanted = fs::read_symlink(fmt::format("/proc/{}/ns/pid", init));
    for (const auto& entry : fs::directory_iterator("/proc"))
        if (pid_t pid = std::atoi(entry.path().filename().c_str()); pid > 0 && pid != init)
            if (fs::read_symlink(entry.path() / "ns/pid", gone) == wanted || (gone && depth_of(pid) == depth_of(init)))
                members.insert(pid);
    return members;
}

std::set<int> descriptors_of(pid_t pid) {
    std::set<int> all;
    for (const auto& fd : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fd"))
        all.insert(std::stoi(fd.path().filename()));
    return all;
}

std::string text_of(pid_t pid, const std::string& name) {
    std::ifstream in("/proc/" + std::to_string(pid) + "/" + name);
    return {std::istreambuf_iterator<char>(in), {}};
}

Findings findings_of(pid_t pid) {
    Findings found{};
    iovec to{&found, sizeof(found)};
    iovec from{reinterpret_cast<void*>(kData), sizeof(found)};
    EXPECT_EQ(process_vm_readv(pid, &to, 1, &from, 1, 0), static_cast<ssize_t>(sizeof(found)));
    return found;
}

Findings wait_done(pid_t pid) {
    for (int i = 0; i < 12'000; i++) {
        Findings found = findings_of(pid);
        if (found.done)
            return found;
        poll(nullptr, 0, 5);
    }
    ADD_FAILURE() << "the restored program did not come to its end";
    return {};
}

// Fails at the nth step.
class FailingSteps : public Steps {
  public:
    explicit FailingSteps(int at) : at_(at) {}
    Result<void> enter(std::string_view step) override {
        if (seen++ == at_)
            return fail(ErrorKind::kCancelled, std::string(step), "cancelled by the test");
        return {};
    }
    int seen = 0;

  private:
    int at_;
};

class RestoreTest : public testing::Test {
  protected:
    void SetUp() override {
        if (geteuid() != 0)
            GTEST_SKIP() << "needs root";
        prctl(PR_SET_CHILD_SUBREAPER, 1);  // orphans come to us instead of to PID 1
        char path[] = "/tmp/checkpointd-restore-XXXXXX";
        ASSERT_NE(mkdtemp(path), nullptr);
        path_ = path;
        base_ = free_pids(8);
        build();
        dir_ = ScopedFd(open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        hook_page_ = static_cast<int*>(mmap(nullptr, kPage, PROT_READ | PROT_WRITE,
                                            MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    }

    void TearDown() override {
        for (pid_t pid : {parent(), child()})
            if (kill(pid, SIGKILL) == 0)
                waitpid(pid, nullptr, 0);
        for (pid_t taker : takers_)
            if (kill(taker, SIGKILL) == 0)
                waitpid(taker, nullptr, 0);
        if (holder_ > 0) {
            kill(holder_, SIGKILL);
            while (waitpid(-1, nullptr, WNOHANG) > 0) {  // orphans, for whom it waits
            }
            waitpid(holder_, nullptr, 0);
        }
        if (!path_.empty())
            std::filesystem::remove_all(path_);
    }

    pid_t dead_leader() const { return base_; }
    pid_t parent() const { return base_ + 1; }
    pid_t thread() const { return base_ + 2; }
    pid_t child() const { return base_ + 3; }
    pid_t dead() const { return base_ + 4; }
    pid_t dead_group() const { return base_ + 5; }

    // Parent with a thread, a child in a group whose leader is dead, and a zombie; all in a session
    // whose leader is dead. Clocks a million seconds ahead of ours; a deadline a second after that.
    void build() {
        ImageBuilder builder(path_);
        constexpr int64_t kAhead = 1'000'000;
        timespec now{};
        clock_gettime(CLOCK_MONOTONIC, &now);
        image_clock_ = now.tv_sec + kAhead;
        builder.clocks(image_clock_, image_clock_);
        Findings data{};
        std::strcpy(data.path, "/mnt/found");
        data.deadline = {image_clock_ + 1, 0};
        data.beat = {0, 5'000'000};
        Findings child_data = data;
        data.zombie = dead();
        data.pipe_out = kPipeOut;
        child_data.pipe_in = kPipeIn;
        builder.task(parent(), 1, dead_leader(), dead_leader(), data, {thread()});
        builder.task(child(), parent(), dead_group(), dead_leader(), child_data);
        builder.pipe(parent(), child());
        builder.zombie(dead(), parent(), dead_leader(), dead_leader(), 7 << 8);
        builder.finish();
    }

    // A process in a mount namespace of its own, where /mnt/found can be read; perhaps in more of its own.
    void make_namespace(uint64_t more = 0) {
        int ready[2];
        ASSERT_EQ(pipe(ready), 0);
        clone_args args{};
        args.flags = more;
        args.exit_signal = SIGCHLD;
        holder_ = static_cast<pid_t>(syscall(SYS_clone3, &args, sizeof(args)));
        if (holder_ == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            signal(SIGCHLD, SIG_IGN);  // orphans of its PID namespace are reaped at once
            bool good = unshare(CLONE_NEWNS) == 0 &&
                        mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
                        mount("tmpfs", "/mnt", "tmpfs", 0, nullptr) == 0;
            std::ofstream("/mnt/found") << "inside";
            char byte = good;
            (void)!write(ready[1], &byte, 1);
            for (;;)
                pause();
        }
        char good = 0;
        ASSERT_EQ(read(ready[0], &good, 1), 1);
        ASSERT_TRUE(good);
        close(ready[0]), close(ready[1]);
        holder_fd_ = ScopedFd(static_cast<int>(syscall(SYS_pidfd_open, holder_, 0)));
    }

    // Numbers of the image are others' outside, and free in a namespace.
    RestoreRequest request_with_taken_numbers(Steps& steps) {
        if (takers_.empty()) {
            make_namespace(CLONE_NEWPID);
            for (pid_t number : {parent(), thread(), dead_leader()})
                takers_.push_back(take_number(number));
        }
        RestoreRequest request = this->request(steps);
        request.in_pid_namespace = true;
        return request;
    }

    void expect_empty_namespace() {
        for (int wait = 0; wait < 30'000 && !members_of_namespace(holder_).empty(); wait++) {
            waitpid(-1, nullptr, WNOHANG);
            poll(nullptr, 0, 1);
        }
        EXPECT_EQ(members_of_namespace(holder_), std::set<pid_t>());
        EXPECT_TRUE(exists(holder_));
    }

    RestoreRequest request(Steps& steps) {
        RestoreRequest request(steps);
        request.image_dir_fd = dir_.get();
        if (holder_fd_)
            request.namespaces_of_pidfd = holder_fd_.get();
        return request;
    }

    void expect_nothing_left() {
        for (pid_t i = 0; i < 8; i++) {
            for (int wait = 0; wait < 30'000 && exists(base_ + i); wait++) {
                if (waitpid(base_ + i, nullptr, WNOHANG) <= 0)
                    poll(nullptr, 0, 1);
            }
            EXPECT_FALSE(exists(base_ + i)) << base_ + i << "\n" << text_of(base_ + i, "status");
        }
    }

    std::string path_;
    ScopedFd dir_;
    pid_t base_ = 0;
    int64_t image_clock_ = 0;
    pid_t holder_ = -1;
    ScopedFd holder_fd_;
    std::vector<pid_t> takers_;
    int* hook_page_ = nullptr;
    SilentSteps silent_;
};

int sample_hook(void* context) {
    *static_cast<int*>(context) = static_cast<int>(syscall(SYS_getpid));
    return 0;
}

TEST_F(RestoreTest, BringsBackAForest) {
    make_namespace();
    RestoreRequest request = this->request(silent_);
    request.hooks.push_back({child(), "sample", sample_hook, hook_page_});
    RestoreStats stats;
    auto built = build_forest(request, stats);
    ASSERT_TRUE(built) << built.error().text();
    EXPECT_EQ(built->main_pid(), parent());
    EXPECT_EQ(stats.threads, 3u);
    EXPECT_EQ(findings_of(parent()).done, 0u) << "held until committed";
    ASSERT_TRUE(built->commit());
    Findings found = wait_done(parent());
    EXPECT_EQ(found.pid, parent());
    EXPECT_EQ(found.tid, parent());
    EXPECT_EQ(found.sid, dead_leader());
    EXPECT_EQ(found.pgid, dead_leader());
    EXPECT_EQ(found.filtered, -kFilteredErrno);
    EXPECT_EQ(found.slept, 0);
    EXPECT_EQ(found.xmm, static_cast<uint64_t>(parent()));
    // The deadline is one second after the image's clock: neither passed at once nor so far away as
    // the clocks are ahead.
    EXPECT_GE(found.woken.tv_sec, image_clock_ + 1);
    EXPECT_LE(found.woken.tv_sec, image_clock_ + 100);
    EXPECT_STREQ(found.content, "inside");
    EXPECT_EQ(found.zombie_pid, dead());
    EXPECT_EQ(found.zombie_status, 7 << 8);
    EXPECT_EQ(found.thread_tid, thread());
    for (int wait = 0; wait < 12'000 && found.thread_beats <= 10; wait++, poll(nullptr, 0, 5))
        found.thread_beats = findings_of(parent()).thread_beats;
    EXPECT_GT(found.thread_beats, 10u);
    Findings second = wait_done(child());
    EXPECT_EQ(second.sid, dead_leader());
    EXPECT_EQ(second.pgid, dead_group());
    EXPECT_STREQ(second.piped, "waiting, inside");
    EXPECT_EQ(descriptors_of(parent()), std::set<int>{kPipeOut});
    EXPECT_EQ(descriptors_of(child()), std::set<int>{kPipeIn});
    EXPECT_NE(text_of(child(), "status").find("Umask:\t0027\n"), std::string::npos);
    EXPECT_EQ(*hook_page_, child());
    EXPECT_FALSE(exists(dead_leader()));
    EXPECT_FALSE(exists(dead_group()));
}

TEST_F(RestoreTest, TakenNumbersAreFreeInANamespace) {
    RestoreRequest request = request_with_taken_numbers(silent_);
    RestoreStats stats;
    auto built = build_forest(request, stats);
    ASSERT_TRUE(built) << built.error().text();
    std::vector<pid_t> pids = built->pids();
    ASSERT_EQ(pids.size(), 3u);
    EXPECT_EQ(built->main_pid(), pids[0]);
    EXPECT_EQ(built->roots(), std::vector<pid_t>{parent()});
    EXPECT_EQ(members_of_namespace(holder_), std::set<pid_t>(pids.begin(), pids.end()));
    EXPECT_NE(text_of(pids[0], "status").find(fmt::format("NSpid:\t{}\t{}\n", pids[0], parent())),
              std::string::npos);
    EXPECT_NE(text_of(pids[0], "status").find(fmt::format("PPid:\t{}\n", getpid())), std::string::npos);
    ASSERT_TRUE(built->commit());
    Findings found = wait_done(pids[0]);
    EXPECT_EQ(found.pid, parent());
    EXPECT_EQ(found.tid, parent());
    EXPECT_EQ(found.thread_tid, thread());
    EXPECT_EQ(found.sid, dead_leader());
    EXPECT_EQ(found.pgid, dead_leader());
    EXPECT_EQ(found.zombie_pid, dead());
    EXPECT_EQ(found.zombie_status, 7 << 8);
    EXPECT_EQ(found.xmm, static_cast<uint64_t>(parent()));
    Findings second = wait_done(pids[1]);
    EXPECT_EQ(second.pid, child());
    EXPECT_EQ(second.pgid, dead_group());
    EXPECT_STREQ(second.piped, "waiting, inside");
    kill(holder_, SIGKILL);
    for (pid_t pid : {pids[0], pids[1]})
        for (int wait = 0; wait < 30'000 && exists(pid); wait++, poll(nullptr, 0, 1))
            waitpid(pid, nullptr, WNOHANG);
    EXPECT_FALSE(exists(pids[0]) || exists(pids[1])) << "they die with its init";
}

TEST_F(RestoreTest, FailureAtEveryStepLeavesAnEmptyNamespace) {
    for (int step = 0;; step++) {
        FailingSteps steps(step);
        SCOPED_TRACE(step);
        RestoreStats stats;
        auto built = build_forest(request_with_taken_numbers(steps), stats);
        if (built) {
            { BuiltForest dropped = std::move(*built); }
            expect_empty_namespace();
            EXPECT_GT(step, 6);
            break;
        }
        EXPECT_EQ(built.error().kind, ErrorKind::kCancelled) << built.error().text();
        expect_empty_namespace();
    }
}

// Of a machine that may be slow: the moments lie further and further apart until one of so many was
// amid the work.
class Instants {
  public:
    explicit Instants(int wanted) : wanted_(wanted) {}
    bool come() {
        if (round_ == wanted_ && amid_ == 0 && range_ < 10'000'000) {
            round_ = 0;
            range_ *= 2;
        }
        return round_++ < wanted_;
    }
    unsigned range() const { return range_; }  // microseconds
    void was_amid(bool amid) { amid_ += amid; }
    int amid() const { return amid_; }

  private:
    int wanted_;
    int round_ = 0;
    int amid_ = 0;
    unsigned range_ = 30'000;
};

TEST_F(RestoreTest, KilledWorkerLeavesAnEmptyNamespace) {
    std::mt19937 random(11);
    RestoreRequest request = request_with_taken_numbers(silent_);
    Instants instants(30);
    while (instants.come()) {
        pid_t worker = fork();
        if (worker == 0) {
            RestoreStats stats;
            auto built = build_forest(request, stats);
            for (;;)
                pause();
        }
        usleep(random() % instants.range());
        instants.was_amid(!members_of_namespace(holder_).empty());
        kill(worker, SIGKILL);
        waitpid(worker, nullptr, 0);
        expect_empty_namespace();
    }
    EXPECT_GT(instants.amid(), 0);
}

TEST_F(RestoreTest, DroppedForestLeavesNothing) {
    RestoreRequest request = this->request(silent_);
    RestoreStats stats;
    {
        auto built = build_forest(request, stats);
        ASSERT_TRUE(built) << built.error().text();
        EXPECT_TRUE(exists(child()));
    }
    expect_nothing_left();
}

TEST_F(RestoreTest, TakenPidIsNamed) {
    RestoreStats stats;
    auto first = build_forest(request(silent_), stats);
    ASSERT_TRUE(first) << first.error().text();
    ASSERT_TRUE(first->commit());
    auto second = build_forest(request(silent_), stats);
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().kind, ErrorKind::kConflict);
    EXPECT_NE(second.error().text().find("payload"), std::string::npos) << second.error().text();
}

// The worker of a checkpoint may be quicker than init, which reaps what was killed.
TEST_F(RestoreTest, TheDeadAreWaitedFor) {
    pid_t dead = take_number(child());
    ASSERT_EQ(dead, child());
    kill(dead, SIGKILL);
    siginfo_t info{};
    ASSERT_EQ(waitid(P_PID, static_cast<id_t>(dead), &info, WEXITED | WNOWAIT), 0);
    std::thread init([dead] {
        usleep(200'000);
        waitpid(dead, nullptr, 0);
    });
    RestoreStats stats;
    auto built = build_forest(request(silent_), stats);
    init.join();
    EXPECT_TRUE(built) << built.error().text();
}

TEST_F(RestoreTest, FailureAtEveryStepLeavesNothing) {
    int step = 0;
    for (;; step++) {
        FailingSteps steps(step);
        RestoreStats stats;
        auto built = build_forest(request(steps), stats);
        if (built) {
            { BuiltForest dropped = std::move(*built); }
            expect_nothing_left();
            break;
        }
        EXPECT_EQ(built.error().kind, ErrorKind::kCancelled);
        expect_nothing_left();
    }
    EXPECT_GT(step, 6);
    RestoreStats stats;
    EXPECT_TRUE(build_forest(request(silent_), stats));
}

TEST_F(RestoreTest, FailureOfEveryOperationIsNamedAndLeavesNothing) {
    RestoreRequest request = this->request(silent_);
    auto count = plan_restore(request);
    ASSERT_TRUE(count) << count.error().text();
    size_t programs = (*count)->programs.programs().size();
    // A restore for every operation takes minutes; one in seven, other ones in each program, does not.
    size_t stride = std::getenv("CHECKPOINTD_SOAK") != nullptr ? 1 : 7;
    for (uint32_t program = 0; program < programs; program++) {
        size_t ops = (*count)->programs.program(program).ops().size();
        for (size_t op = ops == 0 ? 0 : std::min(program % stride, ops - 1); op < ops; op += stride) {
            auto plan = plan_restore(request);
            ASSERT_TRUE(plan);
            restorer::Op& broken = (*plan)->programs.program(program).ops()[op];
            broken.code = restorer::OpCode::kSyscall;
            broken.nr = 100000;  // no such call
            broken.flags = 0;
            std::string line = fmt::format("{} (operation {} of {})",
                                           print_op((*plan)->programs, broken), op,
                                           (*plan)->programs.program(program).name());
            SCOPED_TRACE(line);
            RestoreStats stats;
            auto built = execute_plan(request, std::move(*plan), stats);
            ASSERT_FALSE(built) << program << ":" << op;
            EXPECT_EQ(built.error().errno_code, ENOSYS) << built.error().text();
            EXPECT_NE(built.error().text().find(line), std::string::npos) << built.error().text();
            expect_nothing_left();
        }
    }
    RestoreStats stats;
    auto whole = build_forest(request, stats);
    EXPECT_TRUE(whole) << whole.error().text();
}

int hook_that_hangs(void*) {
    for (;;)
        pause();
}

TEST_F(RestoreTest, HangingOperationMeetsTheDeadline) {
    RestoreRequest request = this->request(silent_);
    request.hooks.push_back({child(), "hang", hook_that_hangs, nullptr});
    auto start = std::chrono::steady_clock::now();
    request.deadline = start + std::chrono::milliseconds(300);
    RestoreStats stats;
    auto built = build_forest(request, stats);
    ASSERT_FALSE(built);
    EXPECT_EQ(built.error().kind, ErrorKind::kTimeout) << built.error().text();
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(100));
    expect_nothing_left();
    request.hooks.clear();
    request.deadline = std::chrono::steady_clock::now() + std::chrono::minutes(5);
    EXPECT_TRUE(build_forest(request, stats));
}

// What the interpreter finds in the region is what print_plan() shows, line by line. That it also runs
// every line of it, and nothing in between, is what the failure of every operation tells.
TEST_F(RestoreTest, ExecutedPlanIsThePrintedOne) {
    make_namespace();
    RestoreRequest request = this->request(silent_);
    request.hooks.push_back({child(), "sample", sample_hook, hook_page_});
    auto plan = plan_restore(request);
    ASSERT_TRUE(plan) << plan.error().text();
    auto region = Region::map(**plan, request.hooks);
    ASSERT_TRUE(region) << region.error().text();
    const restorer::RegionHeader& header = region->header();
    const auto* ranges = reinterpret_cast<restorer::ProgramRange*>(header.programs);
    const auto* ops = reinterpret_cast<restorer::Op*>(header.operations);
    ASSERT_EQ(header.program_count, (*plan)->programs.programs().size());
    std::string executed;
    for (uint32_t i = 0; i < header.program_count; i++) {
        if (ranges[i].count == 0)
            continue;
        Program read((*plan)->programs, (*plan)->programs.program(i).name(), i);
        read.ops().assign(ops + ranges[i].first, ops + ranges[i].first + ranges[i].count);
        executed += print_program((*plan)->programs, read);
    }
    std::string printed = print_plan(**plan);
    EXPECT_NE(printed.find(executed), std::string::npos) << printed << "but executed\n" << executed;
}

TEST_F(RestoreTest, AllBlockersAreToldAtOnce) {
    auto images = images::ImageDir::open(AT_FDCWD, path_);
    ASSERT_TRUE(images);
    auto rewrite = [&](images::ImageType type, pid_t pid, auto change) {
        auto id = static_cast<uint64_t>(pid);
        auto record = change(*images);
        std::filesystem::remove(path_ + "/" + images::image_name(type, id));
        auto writer = images->create(type, id);
        ASSERT_TRUE(writer && writer->record(record) && writer->finish());
    };
    rewrite(images::ImageType::kCore, child(), [&](images::ImageDir& dir) {
        auto core = *dir.read_one<images::core_entry>(images::ImageType::kCore,
                                                      static_cast<uint64_t>(child()));
        constexpr uint64_t kCompatibleCs = 0x23;
        core.mutable_thread_info()->mutable_gpregs()->set_cs(kCompatibleCs);
        return core;
    });
    rewrite(images::ImageType::kMm, parent(), [&](images::ImageDir& dir) {
        auto mm = *dir.read_one<images::mm_entry>(images::ImageType::kMm,
                                                  static_cast<uint64_t>(parent()));
        mm.mutable_vmas(2)->set_status(images::kVmaRegular | images::kVmaAioRing);
        return mm;
    });
    RestoreStats stats;
    auto built = build_forest(request(silent_), stats);
    ASSERT_FALSE(built);
    std::string text = built.error().text();
    EXPECT_EQ(built.error().kind, ErrorKind::kUnsupported);
    EXPECT_NE(text.find("32-bit"), std::string::npos) << text;
    EXPECT_NE(text.find("asynchronous I/O"), std::string::npos) << text;
    for (pid_t pid : {parent(), child()})
        EXPECT_NE(text.find(fmt::format("pid {}", pid)), std::string::npos) << text;
}

TEST_F(RestoreTest, KilledWorkerLeavesNothing) {
    std::mt19937 random(7);
    Instants instants(60);
    while (instants.come()) {
        pid_t worker = fork();
        if (worker == 0) {
            RestoreStats stats;
            auto built = build_forest(request(silent_), stats);
            for (;;)
                pause();
        }
        usleep(random() % instants.range());
        instants.was_amid(exists(parent()));
        kill(worker, SIGKILL);
        waitpid(worker, nullptr, 0);
        expect_nothing_left();
    }
    EXPECT_GT(instants.amid(), 0);
}

TEST_F(RestoreTest, DamagedImagesAreAnswered) {
    std::mt19937 random(1);
    std::vector<std::string> names;
    for (const auto& file : std::filesystem::directory_iterator(path_))
        names.push_back(file.path());
    RestoreRequest request = this->request(silent_);
    for (int round = 0; round < 400; round++) {
        const std::string& name = names[random() % names.size()];
        std::string content;
        {
            std::ifstream in(name, std::ios::binary);
            content.assign(std::istreambuf_iterator<char>(in), {});
        }
        std::string damaged = content;
        if (random() % 4 == 0)
            damaged.resize(random() % (content.size() + 1));
        for (unsigned i = 0; i < 1 + random() % 4 && !damaged.empty(); i++)
            damaged[random() % damaged.size()] = static_cast<char>(random());
        std::ofstream(name, std::ios::binary | std::ios::trunc) << damaged;
        auto plan = plan_restore(request);
        if (plan)
            EXPECT_FALSE(print_plan(**plan).empty());
        else
            EXPECT_FALSE(plan.error().text().empty());
        std::ofstream(name, std::ios::binary | std::ios::trunc) << content;
    }
    EXPECT_TRUE(plan_restore(request));
}

}  // namespace
}  // namespace checkpointd

int main(int argc, char** argv) {
    return checkpointd::run_tests_with_own_pids(argc, argv);
}
