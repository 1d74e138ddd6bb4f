// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/inject/seize.h"

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <fcntl.h>
#include <fmt/core.h>
#include <functional>
#include <linux/ptrace.h>
#include <map>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>
#include <utility>

#include "core/arch/x86_64/restart.h"
#include "core/arch/x86_64/stub.h"
#include "core/base/io.h"
#include "core/inject/stops.h"
#include "core/kernel/cgroup.h"
#include "core/kernel/pidfd.h"
#include "core/kernel/proc_stat.h"
#include "core/kernel/proc_status.h"
#include "core/kernel/proc_task.h"

namespace checkpointd {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;
using std::chrono::milliseconds;

// For a thread that runs for its driver to stop once more.
constexpr std::chrono::seconds kLooseTime{10};

std::string name_of(pid_t pid) { return name_of_thread(pid, pid); }
std::string name_of(pid_t pid, pid_t tid) { return name_of_thread(pid, tid); }

bool is_gone(const Error& error) {
    return error.kind == ErrorKind::kGone || error.errno_code == ENOENT ||
           error.errno_code == ESRCH;
}

void pause_for(microseconds time) {
    timespec ts{time.count() / 1000000, (time.count() % 1000000) * 1000};
    nanosleep(&ts, nullptr);
}

// The tracer takes the exit status of a dying tracee; without that its own parent does not hear of it.
void reap(pid_t tid, Clock::time_point deadline) {
    for (;;) {
        int status = 0;
        pid_t got = waitpid(tid, &status, __WALL | WNOHANG);
        if (got < 0 || (got > 0 && !WIFSTOPPED(status)) || Clock::now() >= deadline)
            return;
        pause_for(microseconds(100));
    }
}

// linux/rseq.h, as far as the kernel's ABI is fixed.
struct RseqArea {
    uint32_t cpu_id_start;
    uint32_t cpu_id;
    uint64_t critical_section;
};
struct RseqCriticalSection {
    uint32_t version;
    uint32_t flags;
    uint64_t start;
    uint64_t length;
    uint64_t abort;
};

// A preempted critical section must not go on, and the kernel would see that only if the instruction pointer
// stayed where it is: kernel/rseq.c forgets the section once the thread returned to any place outside.
Result<bool> leave_rseq_section(const SeizedProcess& process, pid_t tid, user_regs_struct& regs) {
    if (in_system_call(regs))
        return false;
    CKPT_ASSIGN(std::optional<RseqConfiguration> rseq, ptrace_get_rseq(tid));
    if (!rseq || rseq->abi_pointer == 0)
        return false;
    RseqArea area{};
    RseqCriticalSection section{};
    if (!process.read_memory(rseq->abi_pointer, &area, sizeof(area)) || area.critical_section == 0 ||
        !process.read_memory(area.critical_section, &section, sizeof(section)))
        return false;
    if (regs.rip - section.start >= section.length)
        return false;
    regs.rip = section.abort;
    return true;
}

// A thread that an injector let go by dying, and that has not left its stub yet: what it is on its way to becomes
// what it is. The mask comes first, as the stub would set it anyway.
Result<bool> lead_home(const SeizedProcess& process, pid_t tid, user_regs_struct& regs) {
    std::byte bytes[kStubSize];
    std::optional<uint64_t> place = stub_place_of(regs.rip);
    if (!place || !process.read_memory(*place, bytes, sizeof(bytes)) || !looks_like_stub(bytes))
        return false;
    if (is_with_child(*place, regs))
        return fail(ErrorKind::kConflict, name_of(process.pid, tid),
                    "is on its way out of a checkpoint that was killed", "try again");
    std::optional<WayHome> home = way_home(bytes, *place, regs);
    if (!home)
        return false;
    CKPT_TRY(ptrace_set_sigmask(tid, home->signal_mask));
    CKPT_TRY(ptrace_set_regs(tid, home->regs));
    regs = home->regs;
    return true;
}

}  // namespace

Result<void> SeizedProcess::read_memory(uint64_t address, void* into, size_t size) const {
    auto* out = static_cast<std::byte*>(into);
    while (size > 0) {
        ssize_t n = pread(mem.get(), out, size, static_cast<off_t>(address));
        if (n <= 0)
            return fail_errno(name_of(pid), fmt::format("cannot read memory at {:#x}", address),
                              n == 0 ? ESRCH : errno);
        out += n;
        address += static_cast<uint64_t>(n);
        size -= static_cast<size_t>(n);
    }
    return {};
}

Result<void> SeizedProcess::write_memory(uint64_t address, const void* from, size_t size) const {
    const auto* in = static_cast<const std::byte*>(from);
    while (size > 0) {
        ssize_t n = pwrite(mem.get(), in, size, static_cast<off_t>(address));
        if (n <= 0)
            return fail_errno(name_of(pid), fmt::format("cannot write memory at {:#x}", address),
                              n == 0 ? ESRCH : errno);
        in += n;
        address += static_cast<uint64_t>(n);
        size -= static_cast<size_t>(n);
    }
    return {};
}

Result<int> SeizedThread::seccomp_mode() const {
    CKPT_ASSIGN(ProcStatus status, read_status(tid_));
    return static_cast<int>(status.seccomp_mode);
}

Result<std::vector<std::vector<sock_filter>>> SeizedThread::seccomp_filters() const {
    std::vector<std::vector<sock_filter>> filters;
    CKPT_ASSIGN(int mode, seccomp_mode());
    constexpr int kFilterMode = 2;
    for (unsigned index = 0; mode == kFilterMode; ++index) {
        CKPT_ASSIGN(std::optional<std::vector<sock_filter>> filter,
                    ptrace_get_seccomp_filter(tid_, index));
        if (!filter)
            break;
        filters.push_back(std::move(*filter));
    }
    std::reverse(filters.begin(), filters.end());
    return filters;
}

// The work of making a SeizedForest. What it holds is released when it is destroyed before finish().
class Seizer {
  public:
    explicit Seizer(const SeizeOptions& options)
        : options_(options), deadline_(Clock::now() + options.timeout) {}
    Seizer(const Seizer&) = delete;
    Seizer& operator=(const Seizer&) = delete;
    ~Seizer();

    Result<SeizedForest> cgroup(const std::string& path);
    Result<SeizedForest> tree(pid_t root);

    static Result<std::optional<SeizedThread>> finish_thread(const SeizedProcess& process, pid_t tid);

  private:
    enum class State { kRunning, kLoose, kStopped };
    struct Task {
        State state = State::kRunning;
        int group_signal = 0;
    };
    struct Process {
        pid_t parent = 0;
        bool zombie = false;
        bool leader_exited = false;
        std::map<pid_t, Task> tasks;
    };

    Result<void> enter(std::string_view step) {
        return options_.steps ? options_.steps->enter(step) : Result<void>();
    }
    Result<void> seize_all(const std::function<Result<std::vector<pid_t>>()>& members);
    Result<bool> add_new(const std::function<Result<std::vector<pid_t>>()>& members);
    bool add_process(pid_t pid);
    bool add_threads(pid_t pid, Process& process);
    void seize_thread(pid_t pid, pid_t tid, Process& process);
    void explain_refusal(pid_t pid, pid_t tid, Process& process, Error error);
    Result<void> wait_all();
    bool look_at_all();
    bool look_at(Process& process);
    bool let_vfork_children_run();
    void gather_loose();
    Error stuck_error() const;
    Result<SeizedForest> finish();
    Result<SeizedProcess> finish_process(pid_t pid, const Process& process);

    SeizeOptions options_;
    Clock::time_point deadline_;
    std::optional<CgroupFreeze> freeze_;
    std::map<pid_t, Process> processes_;
    std::vector<Error> blockers_;
    bool dismissed_ = false;
};

Seizer::~Seizer() {
    if (dismissed_)
        return;
    // A thread that still runs cannot be detached; it is when it stops, or when this thread ends.
    for (auto& [pid, process] : processes_)
        for (auto& [tid, task] : process.tasks) {
            if (task.state != State::kStopped && look_for_stop(tid).state == StopReport::State::kRunning) {
                (void)ptrace_interrupt(tid);
                pause_for(milliseconds(1));
                (void)look_for_stop(tid);
            }
            detach_thread(tid);
        }
}

// Zombies are in no list of a cgroup; they are found as children.
bool Seizer::add_process(pid_t pid) {
    Result<ProcStat> stat = read_stat(pid);
    if (!stat)
        return false;
    Process process;
    process.parent = stat->ppid;
    Result<std::vector<pid_t>> tasks = read_task_list(pid);
    process.zombie = (stat->state == 'Z' || stat->state == 'X') && (!tasks || tasks->size() <= 1);
    processes_.emplace(pid, std::move(process));
    return true;
}

void Seizer::explain_refusal(pid_t pid, pid_t tid, Process& process, Error error) {
    Result<ProcStatus> status = read_thread_status(pid, tid);
    if (is_gone(error) || !status)
        return;
    if (status->state == 'Z' || status->state == 'X') {
        process.leader_exited |= tid == pid;
        return;
    }
    if (status->tracer_pid != 0) {
        Result<ProcStatus> tracer = read_status(status->tracer_pid);
        blockers_.push_back({ErrorKind::kUnsupported, name_of(pid, tid),
                             fmt::format("is traced by pid {} ({})", status->tracer_pid,
                                         tracer ? tracer->name : "?"),
                             "end the debugger or tracer first", 0, {}});
        return;
    }
    blockers_.push_back(std::move(error).with_object(name_of(pid, tid)));
}

// No EXITKILL: should we die, everything runs on.
void Seizer::seize_thread(pid_t pid, pid_t tid, Process& process) {
    Result<void> seized = ptrace_seize(tid, PTRACE_O_TRACESYSGOOD);
    if (!seized) {
        explain_refusal(pid, tid, process, std::move(seized).error());
        return;
    }
    process.tasks.emplace(tid, Task{});
    (void)ptrace_interrupt(tid);
}

bool Seizer::add_threads(pid_t pid, Process& process) {
    if (process.zombie)
        return false;
    Result<std::vector<pid_t>> tids = read_task_list(pid);
    if (!tids)
        return false;
    size_t before = process.tasks.size();
    for (pid_t tid : *tids)
        if (!process.tasks.contains(tid) && !(tid == pid && process.leader_exited))
            seize_thread(pid, tid, process);
    return process.tasks.size() != before;
}

// True if there was anything that we had not known.
Result<bool> Seizer::add_new(const std::function<Result<std::vector<pid_t>>()>& members) {
    CKPT_ASSIGN(std::vector<pid_t> pids, members());
    bool added = false;
    for (pid_t pid : pids) {
        if (pid == getpid())
            return fail(ErrorKind::kUnsupported, name_of(pid), "the target contains checkpointd itself");
        if (!processes_.contains(pid))
            added |= add_process(pid);
    }
    for (auto& [pid, process] : processes_)
        added |= add_threads(pid, process);
    if (!blockers_.empty())
        return tl::unexpected(
            all_blockers("target", "cannot be stopped", std::move(blockers_)).error());
    return added;
}

// Everything that was found and stopped may have had children before it stopped; so until nothing is new.
Result<void> Seizer::seize_all(const std::function<Result<std::vector<pid_t>>()>& members) {
    for (;;) {
        CKPT_ASSIGN(bool added, add_new(members));
        CKPT_TRY(wait_all());
        if (!added)
            return {};
    }
}

// True while any thread has yet to stop.
bool Seizer::look_at(Process& process) {
    bool waiting = false;
    for (auto next = process.tasks.begin(); next != process.tasks.end();) {
        auto task = next++;
        if (task->second.state == State::kStopped)
            continue;
        StopReport report = look_for_stop(task->first);
        if (report.state == StopReport::State::kGone) {
            process.tasks.erase(task);
        } else if (report.state == StopReport::State::kStopped) {
            task->second = {State::kStopped, report.group_signal};
            repair_wait(task->first);
        } else {
            waiting |= task->second.state == State::kRunning;
        }
    }
    return waiting;
}

bool Seizer::look_at_all() {
    bool waiting = false;
    for (auto& [pid, process] : processes_)
        waiting |= look_at(process);
    return waiting;
}

// A parent in vfork() sleeps uninterruptibly until its child calls exec or exits, which it cannot do
// while it stands still. So the children of threads that do not stop go on for a moment.
bool Seizer::let_vfork_children_run() {
    bool any = false;
    for (auto& [pid, process] : processes_) {
        Process* parent = processes_.contains(process.parent) ? &processes_[process.parent] : nullptr;
        bool parent_stuck =
            parent && std::any_of(parent->tasks.begin(), parent->tasks.end(),
                                  [](auto& t) { return t.second.state == State::kRunning; });
        for (auto& [tid, task] : process.tasks)
            if (parent_stuck && task.state == State::kStopped && task.group_signal == 0) {
                task.state = State::kLoose;
                (void)ptrace_cont(tid);
                any = true;
            }
    }
    return any;
}

void Seizer::gather_loose() {
    for (auto& [pid, process] : processes_)
        for (auto& [tid, task] : process.tasks)
            if (task.state == State::kLoose) {
                task.state = State::kRunning;
                (void)ptrace_interrupt(tid);
            }
}

Error Seizer::stuck_error() const {
    Error all{ErrorKind::kTimeout, "target", "does not stand still",
              "a task waits uninterruptibly in the kernel; try later", 0, {}};
    for (const auto& [pid, process] : processes_)
        for (const auto& [tid, task] : process.tasks) {
            if (task.state == State::kStopped)
                continue;
            Result<ProcStatus> status = read_thread_status(pid, tid);
            Result<std::string> place = read_file(AT_FDCWD, fmt::format("/proc/{}/wchan", tid));
            all.causes.push_back({ErrorKind::kTimeout, name_of(pid, tid),
                                  fmt::format("does not stop: state {}, in {}",
                                              status ? status->state : '?', place ? *place : "?"),
                                  {}, 0, {}});
        }
    return all;
}

Result<void> Seizer::wait_all() {
    microseconds nap(20);
    Clock::time_point stuck_after = Clock::now() + milliseconds(30);
    while (look_at_all()) {
        if (Clock::now() >= deadline_)
            return tl::unexpected(stuck_error());
        if (Clock::now() >= stuck_after) {
            // The frozen would not run; what we have holds still in ptrace-stop instead.
            if (freeze_)
                CKPT_TRY(std::exchange(freeze_, std::nullopt)->thaw());
            (void)let_vfork_children_run();
            stuck_after = Clock::now() + milliseconds(30);
        }
        pause_for(nap);
        nap = std::min(nap * 2, microseconds(2000));
    }
    gather_loose();
    return look_at_all() ? wait_all() : Result<void>();
}

Result<std::vector<pid_t>> read_process_tree(pid_t root) {
    std::vector<pid_t> found{root};
    for (size_t i = 0; i < found.size(); ++i) {
        Result<std::vector<pid_t>> children = read_children(found[i]);
        if (!children && is_gone(children.error()))
            continue;
        if (!children)
            return children;
        for (pid_t child : *children)  // not insert(), which GCC 14 warns of without a reason
            found.push_back(child);
    }
    return found;
}

Result<SeizedForest> Seizer::tree(pid_t root) {
    CKPT_TRY(enter("checkpoint.seize"));
    CKPT_ASSIGN(ScopedFd root_fd, pidfd_open(root));
    for (pid_t pid = getpid(); pid > 1;) {
        if (pid == root)
            return fail(ErrorKind::kUnsupported, name_of(root), "the target contains checkpointd itself");
        CKPT_ASSIGN(ProcStat stat, read_stat(pid));
        pid = stat.ppid;
    }
    CKPT_TRY(seize_all([&] { return read_process_tree(root); }));
    return finish();
}

Result<SeizedForest> Seizer::cgroup(const std::string& path) {
    CKPT_ASSIGN(std::vector<pid_t> first, cgroup_processes(path));
    if (std::find(first.begin(), first.end(), getpid()) != first.end())
        return fail(ErrorKind::kUnsupported, path, "the target contains checkpointd itself");
    if (first.empty())
        return fail(ErrorKind::kNotFound, path, "there is no process in the cgroup");
    CKPT_TRY(enter("checkpoint.freeze"));
    if (options_.before_freeze)
        CKPT_TRY(options_.before_freeze());
    CKPT_ASSIGN(freeze_, CgroupFreeze::freeze(path, deadline_));
    if (freeze_->was_frozen_before())  // nothing injected would run
        return fail(ErrorKind::kConflict, path, "the cgroup is frozen already",
                    "thaw it: systemctl thaw, or write 0 to its cgroup.freeze");
    CKPT_TRY(enter("checkpoint.seize"));
    auto members = [&]() -> Result<std::vector<pid_t>> {
        CKPT_ASSIGN(std::vector<pid_t> pids, cgroup_processes(path));
        std::erase(pids, options_.spared);
        for (size_t i = 0, listed = pids.size(); i < listed; ++i) {
            Result<std::vector<pid_t>> children = read_children(pids[i]);
            for (pid_t child : children ? *children : std::vector<pid_t>()) {
                Result<ProcStat> stat = read_stat(child);
                if (stat && stat->state == 'Z' && !std::count(pids.begin(), pids.end(), child))
                    pids.push_back(child);
            }
        }
        return pids;
    };
    CKPT_TRY(seize_all(members));
    if (freeze_)
        CKPT_TRY(freeze_->thaw());
    return finish();
}

Result<std::optional<SeizedThread>> Seizer::finish_thread(const SeizedProcess& process, pid_t tid) {
    Result<user_regs_struct> regs = ptrace_get_regs(tid);
    if (!regs && regs.error().kind == ErrorKind::kGone)
        return std::optional<SeizedThread>();
    if (!regs)
        return tl::unexpected(std::move(regs).error().with_object(name_of(process.pid, tid)));
    for (bool led = true; led;) {
        CKPT_ASSIGN(led, lead_home(process, tid, *regs));
    }
    CKPT_ASSIGN(bool left_section, leave_rseq_section(process, tid, *regs));
    if (left_section)
        CKPT_TRY(ptrace_set_regs(tid, *regs));
    SeizedThread thread(tid, *regs);
    CKPT_ASSIGN(thread.signal_mask_, ptrace_get_sigmask(tid));
    return std::optional<SeizedThread>(thread);
}

Result<SeizedProcess> Seizer::finish_process(pid_t pid, const Process& process) {
    SeizedProcess out;
    out.pid = pid;
    out.parent = process.parent;
    out.zombie = process.zombie || process.tasks.empty();
    out.leader_exited = !out.zombie && !process.tasks.contains(pid);
    if (out.zombie)
        return out;
    CKPT_ASSIGN(out.pidfd, pidfd_open(pid));
    // A dead leader has no memory any more; any living thread has.
    pid_t alive = process.tasks.begin()->first;
    CKPT_ASSIGN(out.mem, open_at(AT_FDCWD, fmt::format("/proc/{}/mem", alive), O_RDWR));
    for (const auto& [tid, task] : process.tasks) {
        out.stop_signal = std::max(out.stop_signal, task.group_signal);
        CKPT_ASSIGN(std::optional<SeizedThread> thread, finish_thread(out, tid));
        if (thread)
            out.threads.push_back(*thread);
    }
    auto leader = std::find_if(out.threads.begin(), out.threads.end(),
                               [&](const SeizedThread& t) { return t.tid() == pid; });
    if (leader != out.threads.end())
        std::rotate(out.threads.begin(), leader, leader + 1);
    out.zombie = out.threads.empty();
    return out;
}

// Parents before children; members whose parent is outside come in the order of their PIDs.
Result<SeizedForest> Seizer::finish() {
    std::vector<pid_t> order;
    auto place = [&](auto&& self, pid_t pid) -> void {
        order.push_back(pid);
        for (auto& [child, process] : processes_)
            if (process.parent == pid && child != pid)
                self(self, child);
    };
    for (auto& [pid, process] : processes_) {
        Result<ProcStat> stat = read_stat(pid);  // a parent may have died since
        if (stat)
            process.parent = stat->ppid;
    }
    for (auto& [pid, process] : processes_)
        if (!processes_.contains(process.parent))
            place(place, pid);
    SeizedForest forest;
    std::vector<SeizedProcess> made;
    for (pid_t pid : order) {
        const Process& process = processes_[pid];
        if (process.zombie || !process.tasks.empty() || read_stat(pid)) {
            CKPT_ASSIGN(SeizedProcess one, finish_process(pid, process));
            made.push_back(std::move(one));
        }
    }
    dismissed_ = true;
    forest.processes_ = std::move(made);
    if (forest.processes_.empty())
        return fail(ErrorKind::kGone, "target", "all its processes are gone");
    return forest;
}

Result<SeizedForest> SeizedForest::seize_cgroup(const std::string& path, const SeizeOptions& options) {
    return Seizer(options).cgroup(path);
}

Result<SeizedForest> SeizedForest::seize_tree(pid_t root, const SeizeOptions& options) {
    return Seizer(options).tree(root);
}

SeizedForest& SeizedForest::operator=(SeizedForest&& other) noexcept {
    if (this != &other) {
        (void)release();
        processes_ = std::exchange(other.processes_, {});
        loose_ = std::exchange(other.loose_, {});
        have_run_ = std::exchange(other.have_run_, {});
    }
    return *this;
}

SeizedForest::~SeizedForest() { (void)release(); }

SeizedProcess* SeizedForest::find(pid_t pid) {
    auto found = std::find_if(processes_.begin(), processes_.end(),
                              [&](const SeizedProcess& p) { return p.pid == pid; });
    return found == processes_.end() ? nullptr : &*found;
}

Result<SeizedThread*> SeizedForest::find_thread(pid_t pid, pid_t tid) {
    SeizedProcess* process = find(pid);
    for (size_t i = 0; process != nullptr && i < process->threads.size(); ++i)
        if (process->threads[i].tid() == tid)
            return &process->threads[i];
    return fail(ErrorKind::kGone, name_of(pid, tid), "is not among the threads that are held");
}

Result<void> SeizedForest::let_run(pid_t pid, pid_t tid, Journal* journal) {
    CKPT_TRY(find_thread(pid, tid));
    if (auto running = loose_.find(tid); running != loose_.end())
        return running->second.keep_running();
    CKPT_ASSIGN(LooseThread thread, LooseThread::let_run(pid, tid, journal));
    loose_.emplace(tid, std::move(thread));
    have_run_.insert(pid);
    return {};
}

Result<void> SeizedForest::stop_again(pid_t pid, pid_t tid, Clock::time_point deadline) {
    CKPT_ASSIGN(SeizedThread* thread, find_thread(pid, tid));
    auto running = loose_.find(tid);
    if (running == loose_.end())
        return {};
    CKPT_TRY(running->second.stop(deadline));
    loose_.erase(running);
    CKPT_ASSIGN(auto again, Seizer::finish_thread(*find(pid), tid));
    if (!again)
        return fail(ErrorKind::kGone, name_of(pid, tid), "ended while it ran for its driver");
    *thread = *again;
    return {};
}

Result<void> SeizedForest::check_threads() const {
    std::vector<Error> blockers;
    for (const SeizedProcess& process : processes_) {
        if (!have_run_.contains(process.pid))
            continue;
        std::set<pid_t> known;
        for (const SeizedThread& thread : process.threads)
            known.insert(thread.tid());
        if (process.leader_exited)
            known.insert(process.pid);
        CKPT_ASSIGN(const auto now, read_task_list(process.pid));
        for (pid_t tid : now)
            if (!known.contains(tid))
                blockers.push_back({ErrorKind::kUnsupported, name_of(process.pid, tid),
                                    "was made by a driver that worked in its process, and does not stand", {}, 0, {}});
    }
    return all_blockers("target", "has new threads", std::move(blockers));
}

// What runs comes last: it may be in a call of its driver that nothing interrupts.
Result<void> SeizedForest::release() {
    for (const SeizedProcess& process : processes_)
        for (const SeizedThread& thread : process.threads)
            if (!loose_.contains(thread.tid()))
                detach_thread(thread.tid());
    processes_.clear();
    have_run_.clear();
    return release_loose();
}

// One that does not stop is left to the end of this thread, and its mask to the journal.
Result<void> SeizedForest::release_loose() {
    std::vector<Error> failures;
    const auto deadline = Clock::now() + kLooseTime;
    for (auto& [tid, thread] : loose_) {
        auto stopped = thread.stop(deadline);
        if (stopped)
            detach_thread(tid);
        else if (stopped.error().kind == ErrorKind::kGone)
            stopped = thread.forget();
        if (!stopped)
            failures.push_back(std::move(stopped).error());
    }
    loose_.clear();
    return all_blockers("threads of drivers", "cannot be let go", std::move(failures));
}

Result<void> SeizedForest::release_stopped() {
    for (const SeizedProcess& process : processes_)
        if (!process.zombie)
            (void)pidfd_send_signal(process.pidfd.get(), SIGSTOP);
    return release();
}

Result<void> SeizedForest::forget_loose() {
    for (auto& [tid, thread] : std::exchange(loose_, {}))
        CKPT_TRY(thread.forget());
    return {};
}

Result<void> SeizedForest::kill_all() {
    // From here on there is no way back, not even through our own death in the middle.
    for (const SeizedProcess& process : processes_)
        for (const SeizedThread& thread : process.threads)
            (void)ptrace_set_options(thread.tid(), PTRACE_O_EXITKILL);
    for (const SeizedProcess& process : processes_)
        if (!process.zombie)
            (void)pidfd_send_signal(process.pidfd.get(), SIGKILL);
    Clock::time_point deadline = Clock::now() + std::chrono::seconds(30);
    for (const SeizedProcess& process : processes_) {
        for (auto thread = process.threads.rbegin(); thread != process.threads.rend(); ++thread)
            reap(thread->tid(), deadline);
        pollfd dead{process.pidfd.get(), POLLIN, 0};
        auto left = std::chrono::ceil<milliseconds>(deadline - Clock::now()).count();
        if (!process.zombie && poll(&dead, 1, static_cast<int>(std::max<int64_t>(left, 0))) != 1)
            return fail(ErrorKind::kTimeout, name_of(process.pid), "does not die of SIGKILL");
    }
    processes_.clear();
    return forget_loose();
}

}  // namespace checkpointd
