// SPDX-License-Identifier: LGPL-2.1-or-later
#include <fcntl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <cinttypes>
#include <csignal>

#include <fmt/core.h>

#include "core/arch/x86_64/state_from_image.h"
#include "core/kernel/pidfd.h"
#include "core/resources/files.h"
#include "core/restore/barriers.h"
#include "core/restore/executor/region.h"
#include "core/restore/forest_images.h"
#include "core/restore/host_facts.h"
#include "core/restore/lineage.h"
#include "core/restore/memory_plan.h"
#include "core/restore/plugin_plan.h"
#include "core/restore/program/print.h"
#include "core/restore/restore.h"
#include "core/restore/task_state.h"
#include "images/image_dir.h"

namespace checkpointd {

namespace {

constexpr long kNanosecond = 1'000'000'000;

timespec add(timespec a, timespec b) {
    timespec sum{a.tv_sec + b.tv_sec, a.tv_nsec + b.tv_nsec};
    while (sum.tv_nsec >= kNanosecond)
        sum.tv_sec++, sum.tv_nsec -= kNanosecond;
    while (sum.tv_nsec < 0)
        sum.tv_sec--, sum.tv_nsec += kNanosecond;
    return sum;
}

timespec subtract(timespec a, timespec b) {
    return add(a, {-b.tv_sec, -b.tv_nsec});
}

timespec later(timespec a, timespec b) {
    return std::pair(a.tv_sec, a.tv_nsec) < std::pair(b.tv_sec, b.tv_nsec) ? b : a;
}

timespec from_image(const images::timespec& time) {
    return {static_cast<time_t>(time.tv_sec()), static_cast<long>(time.tv_nsec())};
}

class RestorePlanner {
  public:
    RestorePlanner(const RestoreRequest& request, images::ImageDir dir)
        : request_(request),
          dir_(std::move(dir)),
          result_(std::make_unique<RestorePlan>()),
          plan_(result_->programs),
          agent_(plan_.new_program("agent")),
          outside_(plan_.new_program("from outside")),
          plugins_(forest_, file_images_, request.plugins) {
        result_->outside_program = outside_.index();
        result_->own_pid_namespace = request.in_pid_namespace;
    }

    Result<std::unique_ptr<RestorePlan>> plan() {
        CKPT_ASSIGN(facts_, host_facts());
        CKPT_ASSIGN(forest_, read_forest(dir_));
        CKPT_TRY(read_files());
        CKPT_TRY(plan_family());
        CKPT_TRY(open_agent());
        MemoryPlanner memory(dir_, forest_, facts_, agent_, image_dir_, proc_);
        std::vector<Error> blockers;
        check_sharing(blockers);
        if (!request_.imagined_namespaces)
            plugins_.check(blockers);
        check_users(blockers);
        memory.check(blockers);
        check_registers(blockers);
        if (auto shared = plan_shared(memory); !shared)
            add_blockers(std::move(shared).error(), blockers);
        CKPT_TRY(all_blockers("restore", "the image cannot be restored here", std::move(blockers)));
        for (const TaskRecord& task : forest_.tasks)
            CKPT_TRY(plan_task(task, memory));
        plan_makers();
        agent_.exit("agent leaves", 0);
        result_->memory_bytes = memory.bytes();
        CKPT_TRY(place_region());
        return std::move(result_);
    }

  private:
    // What the file planner emits for a task, until it is put where it belongs.
    struct FileParts {
        Program* stage;
        Program* plugins;
        Program* late;
        Program* last;
    };

    Result<void> read_files() {
        std::set<uint32_t> tables;
        std::set<pid_t> pids;
        for (const TaskRecord& task : forest_.tasks)
            if (!task.zombie()) {
                tables.insert(task.ids.files_id());
                pids.insert(task.pid());
            }
        CKPT_ASSIGN(file_images_, read_file_images(request_.image_dir_fd, tables, pids));
        return {};
    }

    // The planner emits for all tasks at once, before their programs have come to the places of its
    // parts; so it writes into programs of its own, which splice() moves.
    Result<void> plan_files(MemoryPlanner& memory) {
        std::vector<FilePlanTask> tasks;
        for (const TaskRecord& task : forest_.tasks) {
            if (task.zombie())
                continue;
            FileParts parts{&plan_.new_program(fmt::format("pid {} descriptors", task.pid())),
                            &plan_.new_program(fmt::format("pid {} plugins' descriptors", task.pid())),
                            &plan_.new_program(fmt::format("pid {} late descriptors", task.pid())),
                            &plan_.new_program(fmt::format("pid {} locks", task.pid()))};
            parts_[task.pid()] = parts;
            tasks.push_back({{task.pid(), parts.stage, parts.late, parts.last, parts.plugins}, task.ids.files_id(),
                             task.ids.fs_id()});
        }
        FilePlanOptions options;
        options.externals = externals_;
        options.image_dir = image_dir_;
        options.proc = proc_;
        options.clocks = clocks_of_tasks();
        options.is_free = [this](const std::string& path) { return is_free(path); };
        options.fill_memory = [&memory](uint32_t shmid, uint64_t size, Slot fd, Program& agent) {
            return memory.fill_memfd(shmid, size, fd, agent);
        };
        options.segment = [&memory](uint32_t shmid) { return memory.segment(shmid); };
        file_tasks_ = tasks;
        files_ = std::make_unique<FilePlanner>(file_images_, std::move(tasks), plan_, agent_,
                                               std::move(options));
        return files_->plan();
    }

    // In the mount namespace that the agent will enter.
    bool is_free(const std::string& path) const {
        std::string root;
        if (request_.namespaces_of_pidfd) {
            auto pid = pid_of_pidfd(*request_.namespaces_of_pidfd);
            if (!pid)
                return false;
            root = fmt::format("/proc/{}/root", *pid);
        }
        struct stat st {};
        return lstat((root + path).c_str(), &st) < 0 && errno == ENOENT;
    }

    PlanClocks clocks_of_tasks() const {
        PlanClocks clocks{facts_.realtime, facts_.monotonic, facts_.boottime};
        if (request_.time_namespace && forest_.clocks) {
            clocks.monotonic = from_image(forest_.clocks->monotonic());
            clocks.boottime = from_image(forest_.clocks->boottime());
        }
        return clocks;
    }

    static void splice(Program& part, Program& into) {
        into.ops().insert(into.ops().end(), part.ops().begin(), part.ops().end());
        part.ops().clear();
    }

    Result<void> plan_fs(const TaskRecord& task, Program& program) {
        if (!file_images_.fs.contains(task.pid()))
            return {};
        for (const FilePlanTask& known : file_tasks_)
            if (known.programs.pid == task.pid())
                return files_->plan_fs(known, program);
        return {};
    }

    // Nobody needs any more what plugins have opened in the tasks.
    void close_strangers(const TaskRecord& task, Program& program) {
        for (const FilePlanTask& known : file_tasks_)
            if (plugins_.is_busy() && known.programs.pid == task.pid())
                files_->close_strangers(known, result_->descriptor_floor, program);
    }

    Result<void> plan_family() {
        std::vector<LineageTask> tasks;
        for (const TaskRecord& task : forest_.tasks)
            tasks.push_back({task.pid(), static_cast<pid_t>(task.entry.ppid()),
                             static_cast<pid_t>(task.entry.pgid()),
                             static_cast<pid_t>(task.entry.sid()), task.object()});
        CKPT_ASSIGN(lineage_, plan_lineage(tasks, request_.shell_job));
        for (const Maker& maker : lineage_.makers)
            if (maker.pid == 0)
                stages_[0] = &agent_;
            else
                stages_[maker.pid] = &plan_.new_program(fmt::format(
                    "{} {} stage", maker.temporary ? "temporary leader" : "pid", maker.pid));
        for (const Maker& maker : lineage_.makers)
            if (maker.temporary)
                result_->helpers.push_back(maker.pid);
        for (const TaskRecord& task : forest_.tasks)
            if (forest_.find(static_cast<pid_t>(task.entry.ppid())) == nullptr)
                result_->roots.push_back(task.pid());
        return {};
    }

    void check_sharing(std::vector<Error>& blockers) const {
        std::map<uint32_t, std::string> memory, actions, tables;
        for (const TaskRecord& task : forest_.tasks) {
            if (task.zombie())
                continue;
            if (!memory.try_emplace(task.ids.vm_id(), task.object()).second)
                blockers.push_back(Error{ErrorKind::kUnsupported, task.object(),
                                         "shares its memory with another process", {}, 0, {}});
            else if (!actions.try_emplace(task.ids.sighand_id(), task.object()).second)
                blockers.push_back(Error{ErrorKind::kUnsupported, task.object(),
                                         "shares signal handlers with another process", {}, 0, {}});
            else if (!tables.try_emplace(task.ids.files_id(), task.object()).second &&
                     !inherits_table(task))
                blockers.push_back(Error{ErrorKind::kUnsupported, task.object(),
                                         "shares its descriptors with another process", {}, 0, {}});
        }
    }

    // Whether the tasks get into a user namespace that fits, with the thread ids that they had.
    void check_users(std::vector<Error>& blockers) const {
        if (request_.imagined_namespaces)
            return;
        UserNamespace target;
        if (request_.namespaces_of_pidfd) {
            auto pid = pid_of_pidfd(*request_.namespaces_of_pidfd);
            auto users = pid ? read_user_namespace(*pid) : tl::unexpected(std::move(pid).error());
            if (!users)
                return blockers.push_back(std::move(users).error());
            target = std::move(*users);
        }
        if (auto fits = check_user_namespaces(forest_.user_namespace, target); !fits)
            blockers.push_back(std::move(fits).error());
        if (target && request_.in_pid_namespace)
            blockers.push_back(Error{ErrorKind::kUnsupported, "user namespace",
                                     "its tasks cannot be born in a PID namespace as well", {}, 0, {}});
        bool has_threads =
            std::any_of(forest_.tasks.begin(), forest_.tasks.end(),
                        [](const TaskRecord& task) { return !task.threads.empty(); });
        if (target && has_threads && access("/proc/sys/kernel/ns_last_pid", W_OK) != 0)
            blockers.push_back(Error{ErrorKind::kUnsupported,
                                     "/proc/sys/kernel/ns_last_pid",
                                     "cannot be written, so threads in a user namespace do not get "
                                     "their numbers back",
                                     {},
                                     errno,
                                     {}});
    }

    static bool same_table(const TaskRecord* a, const TaskRecord* b) {
        return a != nullptr && b != nullptr && a->ids.has_files_id() &&
               a->ids.files_id() == b->ids.files_id();
    }

    // One descriptor table of two tasks comes from being born with CLONE_FILES.
    bool inherits_table(const TaskRecord& task) const {
        for (const Maker& maker : lineage_.makers)
            for (const auto* births : {&maker.before, &maker.after})
                for (const Birth& birth : *births)
                    if (birth.pid == task.pid())
                        return same_table(forest_.find(maker.pid), &task);
        return false;
    }

    // Whether this CPU has what the threads use.
    void check_registers(std::vector<Error>& blockers) const {
        auto check = [&](const images::core_entry& core, const std::string& object) {
            auto registers = registers_from_image(core.thread_info().gpregs(), object);
            if (!registers)
                return blockers.push_back(std::move(registers).error());
            auto xstate = xstate_from_image(core.thread_info().fpregs(), object);
            if (!xstate)
                blockers.push_back(std::move(xstate).error());
        };
        for (const TaskRecord& task : forest_.tasks) {
            if (task.zombie())
                continue;
            check(task.core, task.object());
            for (const auto& [tid, core] : task.threads)
                check(core, fmt::format("{} tid {}", task.object(), tid));
        }
    }

    // What is shared by the tasks, made in the agent.
    Result<void> plan_shared(MemoryPlanner& memory) {
        CKPT_TRY(plan_window(memory));
        enter_namespaces();
        return plan_files(memory);
    }

    static void add_blockers(Error error, std::vector<Error>& blockers) {
        if (error.causes.empty())
            return blockers.push_back(std::move(error));
        for (Error& cause : error.causes)
            blockers.push_back(std::move(cause));
    }

    bool uses_subgroups() const {
        return std::any_of(forest_.tasks.begin(), forest_.tasks.end(),
                           [](const TaskRecord& task) { return !task.extra.cgroup().empty(); });
    }

    Slot keep(const std::string& label, int fd) {
        return agent_.descriptor(label, SYS_fcntl,
                                 {fd, F_DUPFD_CLOEXEC, result_->descriptor_floor});
    }

    // The agent is born with everything that we have open. It keeps what it needs above every number
    // that a task uses, and closes the rest.
    Result<void> open_agent() {
        result_->agent_program = agent_.index();
        CKPT_ASSIGN(uint32_t tasks_floor, descriptor_floor(file_images_));
        result_->descriptor_floor = std::max(facts_.highest_descriptor + 1, tasks_floor);
        rlimit most = facts_.limits[RLIMIT_NOFILE];
        most.rlim_cur = most.rlim_max;
        agent_.call("agent's limit of descriptors", SYS_prlimit64,
                    {0, RLIMIT_NOFILE, plan_.object(most), 0});
        image_dir_ = keep("image directory", request_.image_dir_fd);
        proc_ = agent_.descriptor("/proc", SYS_openat,
                                  {AT_FDCWD, plan_.string("/proc"),
                                   O_PATH | O_DIRECTORY | O_CLOEXEC});
        if (request_.cgroup_fd >= 0 && uses_subgroups())
            cgroup_ = keep("cgroup", request_.cgroup_fd);
        if (request_.namespaces_of_pidfd)
            namespaces_ = keep("process whose namespaces are joined", *request_.namespaces_of_pidfd);
        for (const auto& [key, fd] : request_.externals)
            externals_[key] = keep(key, fd);
        plugins_.open_channels([this](const std::string& label, int fd) { return keep(label, fd); });
        agent_.call("inherited descriptors", SYS_close_range,
                    {0, result_->descriptor_floor - 1, 0});
        return {};
    }

    Result<void> plan_window(MemoryPlanner& memory) {
        if (uint64_t size = memory.window_size(); size > 0) {
            CKPT_ASSIGN(uint64_t window, free_place(forest_, facts_.mappings, size));
            ProcMapping& segments = facts_.mappings.emplace_back();
            segments.start = window, segments.end = window + size;
            return memory.plan_agent(window);
        }
        return memory.plan_agent(0);
    }

    // Offsets are absolute, relative to the initial namespace, while our clocks already have our own
    // namespace's: time_namespaces(7).
    void make_time_namespace() {
        if (!request_.time_namespace || !forest_.clocks)
            return;
        timespec monotonic = subtract(from_image(forest_.clocks->monotonic()),
                                      subtract(facts_.monotonic, facts_.monotonic_offset));
        timespec boottime = subtract(from_image(forest_.clocks->boottime()),
                                     subtract(facts_.boottime, facts_.boottime_offset));
        if (!request_.clocks_may_lag) {
            monotonic = later(monotonic, facts_.monotonic_offset);
            boottime = later(boottime, facts_.boottime_offset);
        }
        std::string text =
            fmt::format("monotonic {} {}\nboottime {} {}\n", monotonic.tv_sec, monotonic.tv_nsec,
                        boottime.tv_sec, boottime.tv_nsec);
        agent_.call("time namespace", SYS_unshare, {CLONE_NEWTIME});
        Slot file = agent_.descriptor("time namespace", SYS_openat,
                                      {proc_, plan_.string("self/timens_offsets"),
                                       O_WRONLY | O_CLOEXEC});
        agent_.call_expect("time namespace", static_cast<int64_t>(text.size()), SYS_write,
                           {file, plan_.string(text), text.size()});
        agent_.call("time namespace", SYS_close, {file});
    }

    void enter_namespaces() {
        make_time_namespace();
        int all = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWCGROUP;
        if (request_.in_pid_namespace)
            all |= CLONE_NEWPID;
        if (namespaces_)
            agent_.call("namespaces", SYS_setns, {*namespaces_, all});
    }

    void plan_births(const Maker& maker, const std::vector<Birth>& births) {
        for (const Birth& birth : births) {
            uint64_t flags = birth.for_parent ? CLONE_PARENT : 0;
            if (same_table(forest_.find(maker.pid), forest_.find(birth.pid)))
                flags |= CLONE_FILES;
            stages_[maker.pid]->fork_task(fmt::format("pid {}", birth.pid), birth.pid,
                                          *stages_[birth.pid], flags);
        }
    }

    // Everything of a stage up to where all processes exist in their sessions and groups.
    void begin_stage(const Maker& maker) {
        Program& stage = *stages_[maker.pid];
        std::string label = fmt::format("pid {} session", maker.pid);
        plan_births(maker, maker.before);
        if (maker.new_session)
            stage.call_expect(label, maker.pid, SYS_setsid, {});
        plan_births(maker, maker.after);
        if (maker.pid == 0)
            return;
        stage.barrier("everybody exists", kAllForked);
        if (!lineage_.has_groups && result_->helpers.empty())
            return;
        label = fmt::format("pid {} group", maker.pid);
        if (maker.group == Maker::Group::kLeads)
            stage.call(label, SYS_setpgid, {0, 0});
        stage.barrier("groups are led", kGroupsLed);
        if (maker.group == Maker::Group::kJoins)
            stage.call(label, SYS_setpgid, {0, maker.joins});
        stage.barrier("groups are joined", kGroupsJoined);
        for (pid_t helper : maker.reaps)
            stage.call_expect(fmt::format("temporary leader {}", helper), helper, SYS_wait4,
                              {helper, 0, __WALL, 0});
    }

    // The makers' part stands before what plan_task() has put into the stages.
    void plan_makers() {
        for (const Maker& maker : lineage_.makers) {
            Program& stage = *stages_[maker.pid];
            std::vector<restorer::Op> rest;
            if (maker.pid != 0)
                rest.swap(stage.ops());
            begin_stage(maker);
            stage.ops().insert(stage.ops().end(), rest.begin(), rest.end());
            if (maker.temporary)
                stage.exit("temporary leader leaves", 0);
        }
    }

    Result<void> plan_task(const TaskRecord& task, MemoryPlanner& memory) {
        PlannedTask planned;
        planned.pid = task.pid();
        planned.name = task.name();
        planned.zombie = task.zombie();
        planned.stop_signal = stop_signal_of(task);
        planned.exit_status = static_cast<int>(task.core.tc().exit_code());
        Program& stage = *stages_[task.pid()];
        planned.stage_program = stage.index();
        if (planned.zombie)
            plan_death(task, stage);
        else
            CKPT_TRY(plan_life(task, planned, stage, memory));
        result_->tasks.push_back(std::move(planned));
        return {};
    }

    // Whether somebody outside of a process group can look after it: in an orphaned one the signals of a
    // terminal stop nobody (is_current_pgrp_orphaned in kernel/exit.c).
    bool is_looked_after(uint32_t group) const {
        return std::any_of(forest_.tasks.begin(), forest_.tasks.end(), [&](const TaskRecord& task) {
            const TaskRecord* parent = forest_.find(static_cast<pid_t>(task.entry.ppid()));
            return task.entry.pgid() == group && !task.zombie() && parent != nullptr &&
                   parent->entry.pgid() != group && parent->entry.sid() == task.entry.sid();
        });
    }

    // The signal that stops a task again and that its parent is told of. SIGSTOP where the one that it was
    // could pass it by.
    int stop_signal_of(const TaskRecord& task) const {
        if (!task.stopped())
            return 0;
        auto signal = static_cast<int>(task.core.tc().stop_signo());
        bool of_terminal = signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU;
        bool acts = of_terminal && has_default_action(task, signal) &&
                    (signal_mask(task.core) >> (signal - 1) & 1) == 0 &&
                    is_looked_after(task.entry.pgid());
        return acts ? signal : SIGSTOP;
    }

    void plan_death(const TaskRecord& task, Program& stage) {
        std::string label = fmt::format("pid {} zombie", task.pid());
        stage.call(label, SYS_prctl, {PR_SET_NAME, plan_.string(task.name()), 0, 0, 0});
        stage.barrier("files are in place", kStagePlaced);
        int status = static_cast<int>(task.core.tc().exit_code());
        if (int signal = status & 0x7f) {
            uint64_t none = 0;
            stage.call(label, SYS_prctl, {PR_SET_DUMPABLE, 0, 0, 0, 0});  // no core file
            stage.call(label, SYS_rt_sigprocmask, {SIG_SETMASK, plan_.object(none), 0, sizeof(none)});
            stage.call(label, SYS_kill, {task.pid(), signal});
        }
        stage.exit(label, status >> 8 & 0xff);
    }

    // Below the cgroup that it is born in, before it has any memory that would be charged there.
    Result<void> plan_cgroup(const TaskRecord& task, Program& stage) {
        const std::string& below = task.extra.cgroup();
        if (!cgroup_ || below.empty())
            return {};
        if (below[0] != '/' || (below + "/").find("/../") != std::string::npos)
            return fail(ErrorKind::kBadImage, task.object(), fmt::format("cgroup '{}'", below));
        std::string label = fmt::format("pid {} cgroup {}", task.pid(), below);
        Slot file = stage.descriptor(label, SYS_openat,
                                     {*cgroup_, plan_.string(below.substr(1) + "/cgroup.procs"),
                                      O_WRONLY | O_CLOEXEC});
        stage.call_expect(label, 1, SYS_write, {file, plan_.string("0"), 1});
        stage.call(label, SYS_close, {file});
        return {};
    }

    Result<void> plan_life(const TaskRecord& task, PlannedTask& planned, Program& stage,
                           MemoryPlanner& memory) {
        Program& blob = plan_.new_program(fmt::format("pid {} blob", task.pid()));
        // What it opened before the numbers of its table are taken could get one of them.
        if (!files_->fills_table(task.pid()))
            stage.barrier("its table is filled", kTablesFilled);
        plan_proc_settings(task, facts_, proc_, stage);
        CKPT_TRY(plan_cgroup(task, stage));
        splice(*parts_.at(task.pid()).stage, stage);
        plugins_.begin(task, stage);
        plan_hooks(task, stage);
        splice(*parts_.at(task.pid()).plugins, stage);
        const PluginMappings of_plugins = plugins_.map(task, stage);
        stage.barrier("files are in place", kStagePlaced);
        stage.enter_blob(fmt::format("pid {}", task.pid()), blob, 0);
        CKPT_TRY(memory.plan_task(task, blob,
                                  [&](uint32_t id) { return files_->slot_of_file(id); }, of_plugins));
        CKPT_TRY(add_thread(planned, task, task.core, task.pid(), blob));
        ThreadState main{task.pid(), task.pid(), task.core, task.object(),
                         task.thread_extra(task.pid())};
        if (forest_.user_namespace)
            CKPT_TRY(enter_user_namespace(task, main, blob));
        CKPT_TRY(plan_threads(task, planned, blob));
        blob.barrier("memory and threads are there", kMemoryReplaced);
        close_strangers(task, blob);
        CKPT_TRY(plan_signal_actions(task, planned, blob));
        CKPT_TRY(plan_limits(task, facts_, blob));
        splice(*parts_.at(task.pid()).late, blob);
        if (!forest_.user_namespace)
            CKPT_TRY(plan_fs(task, blob));
        CKPT_TRY(plan_shared_signals(task, planned, blob));
        CKPT_ASSIGN(size_t shared, count_shared_filters(task));
        CKPT_TRY(plan_thread(main, planned, shared, blob));
        blob.barrier("threads are ready", kThreadsReady);
        CKPT_TRY(plan_process_flags(task, blob));
        CKPT_TRY(plan_timers(task, facts_, blob));
        plan_mdwe(task, blob);
        blob.call(fmt::format("pid {} service descriptors", task.pid()), SYS_close_range,
                  {result_->descriptor_floor, ~0u, 0});
        splice(*parts_.at(task.pid()).last, blob);
        blob.barrier("finished", kFinished);
        return {};
    }

    // A process with threads cannot enter a user namespace (setns(2)), and inside it has no
    // privileges on this machine any more: what needs them comes before, or is done from outside.
    Result<void> enter_user_namespace(const TaskRecord& task, const ThreadState& main,
                                      Program& blob) {
        plan_raised_limits(task, facts_, blob);
        CKPT_TRY(plan_fs(task, blob));
        CKPT_TRY(plan_ids(main, blob));
        if (namespaces_)
            blob.call(fmt::format("pid {} user namespace", task.pid()), SYS_setns,
                      {*namespaces_, CLONE_NEWUSER});
        return {};
    }

    void plan_hooks(const TaskRecord& task, Program& stage) {
        for (size_t i = 0; i < request_.hooks.size(); i++)
            if (request_.hooks[i].pid == 0 || request_.hooks[i].pid == task.pid())
                stage.append(restorer::OpCode::kHook,
                             fmt::format("hook {} in pid {}", request_.hooks[i].name, task.pid()),
                             {i});
    }

    Result<void> plan_threads(const TaskRecord& task, PlannedTask& planned, Program& blob) {
        uint64_t stack = 1;  // 0 is the main thread's
        CKPT_ASSIGN(size_t shared, count_shared_filters(task));
        for (const auto& [tid, core] : task.threads) {
            std::string object = fmt::format("pid {} tid {}", task.pid(), tid);
            Program& program = plan_.new_program(object + " blob");
            blob.thread(object, tid, program, stack++, forest_.user_namespace.has_value());
            program.barrier("memory and threads are there", kMemoryReplaced);
            CKPT_TRY(plan_thread({task.pid(), tid, core, object, task.thread_extra(tid)}, planned,
                                 shared, program));
            program.barrier("threads are ready", kThreadsReady);
            program.barrier("finished", kFinished);
            CKPT_TRY(add_thread(planned, task, core, tid, blob));
        }
        result_->stacks = std::max(result_->stacks, static_cast<uint32_t>(stack));
        return {};
    }

    // How many of their filters, from the oldest on, all threads of a task have in common.
    Result<size_t> count_shared_filters(const TaskRecord& task) const {
        CKPT_ASSIGN(std::vector<int> first,
                    filter_chain(task.core.thread_core(), forest_.seccomp, task.object()));
        size_t shared = task.threads.empty() ? 0 : first.size();
        for (const auto& [tid, core] : task.threads) {
            CKPT_ASSIGN(std::vector<int> chain,
                        filter_chain(core.thread_core(), forest_.seccomp, task.object()));
            auto end = std::mismatch(first.begin(), first.begin() + static_cast<ptrdiff_t>(shared),
                                     chain.begin(), chain.end());
            shared = static_cast<size_t>(end.first - first.begin());
        }
        return shared;
    }

    // The main thread loads for all what all have: so it stays one chain of filters, to which a program
    // can add with SECCOMP_FILTER_FLAG_TSYNC (seccomp(2): other threads' must be part of its own).
    Result<void> plan_seccomp(const ThreadState& thread, size_t shared, Program& program) {
        const images::thread_core_entry& core = thread.core.thread_core();
        if (core.seccomp_mode() == images::strict)
            program.call(thread.object + " seccomp", SYS_seccomp, {SECCOMP_SET_MODE_STRICT, 0, 0});
        CKPT_ASSIGN(std::vector<int> chain, filter_chain(core, forest_.seccomp, thread.object));
        std::span<const int> all(chain);
        if (shared > 0) {
            program.barrier("threads are settled", kThreadsSettled);
            if (thread.tid == thread.pid)
                CKPT_TRY(plan_filters(thread.object, all.first(shared),
                                      SECCOMP_FILTER_FLAG_TSYNC, forest_.seccomp, program));
            program.barrier("filters are shared", kFiltersShared);
        }
        return plan_filters(thread.object, all.subspan(shared), 0, forest_.seccomp, program);
    }

    Result<void> plan_thread(const ThreadState& thread, PlannedTask& planned, size_t shared_filters,
                             Program& program) {
        CKPT_TRY(plan_thread_basics(thread, program));
        bool inside = forest_.user_namespace.has_value();
        CKPT_TRY(plan_schedule(thread, facts_, program, inside ? &outside_ : nullptr));
        CKPT_TRY(plan_pending_signals(thread, planned, program));
        CKPT_TRY(plan_seccomp(thread, shared_filters, program));
        if (!inside)
            CKPT_TRY(plan_ids(thread, program));
        return plan_capabilities(thread, inside ? facts_.all_capabilities : facts_.permitted,
                                 program);
    }

    Result<void> add_thread(PlannedTask& planned, const TaskRecord& task,
                            const images::core_entry& core, pid_t tid, Program& blob) {
        std::string object = fmt::format("pid {} tid {}", planned.pid, tid);
        PlannedThread thread;
        thread.tid = tid;
        CKPT_ASSIGN(thread.registers, registers_from_image(core.thread_info().gpregs(), object));
        thread.xstate = xstate_from_raw(task.thread_extra(tid).xstate());
        if (thread.xstate.empty()) {
            CKPT_ASSIGN(thread.xstate, xstate_from_image(core.thread_info().fpregs(), object));
        }
        ask_permission(thread, object, blob);
        thread.signal_mask = signal_mask(core);
        const images::rseq_entry& rseq = core.thread_core().rseq_entry();
        thread.rseq = rseq.rseq_abi_pointer();
        thread.rseq_cs = rseq.rseq_cs_pointer();
        planned.threads.push_back(std::move(thread));
        return {};
    }

    // AMX: arch_prctl(2), for the whole process. Before threads have signal stacks too small for it.
    void ask_permission(const PlannedThread& thread, const std::string& object, Program& blob) {
        constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
        uint64_t mask = components_by_permission(thread.xstate);
        for (unsigned bit = 0; bit < 64; bit++)
            if (mask >> bit & 1)
                blob.call(object + " CPU state", SYS_arch_prctl, {kRequestPermission, bit});
    }

    Result<void> place_region() {
        CKPT_ASSIGN(std::vector<restorer::Area> vdso, own_vdso());
        uint64_t parking = 0;
        for (const restorer::Area& area : vdso)
            parking += area.size;
        result_->region_size = region_layout(plan_, result_->stacks, parking).size;
        CKPT_ASSIGN(result_->region_base,
                    free_place(forest_, facts_.mappings, result_->region_size));
        return {};
    }

    const RestoreRequest& request_;
    images::ImageDir dir_;
    std::unique_ptr<RestorePlan> result_;
    Plan& plan_;
    Program& agent_;
    Program& outside_;
    HostFacts facts_;
    ForestImages forest_;
    FileImages file_images_;
    std::vector<FilePlanTask> file_tasks_;
    std::unique_ptr<FilePlanner> files_;
    std::map<pid_t, FileParts> parts_;
    PluginPlanner plugins_;
    Lineage lineage_;
    std::map<pid_t, Program*> stages_;
    std::map<std::string, Slot> externals_;
    std::optional<Slot> cgroup_;
    std::optional<Slot> namespaces_;
    Slot image_dir_;
    Slot proc_;
};

}  // namespace

Result<std::unique_ptr<RestorePlan>> plan_restore(const RestoreRequest& request) {
    ScopedFd copy(fcntl(request.image_dir_fd, F_DUPFD_CLOEXEC, 0));
    if (!copy)
        return fail_errno("image directory", "fcntl");
    RestorePlanner planner(request, images::ImageDir::adopt(std::move(copy), "image"));
    return planner.plan();
}

std::string print_plan(const RestorePlan& plan) {
    std::string text = fmt::format("region {:#x}-{:#x}, descriptors from {}\n", plan.region_base,
                                   plan.region_base + plan.region_size, plan.descriptor_floor);
    for (const Program& program : plan.programs.programs())
        if (!program.ops().empty())
            text += print_program(plan.programs, program);
    for (const PlannedTask& task : plan.tasks)
        for (const PlannedThread& thread : task.threads)
            text += fmt::format("set registers of tid {}, signal mask {:#x}\n", thread.tid,
                                thread.signal_mask);
    return text;
}

}  // namespace checkpointd
