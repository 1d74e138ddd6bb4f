// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Runs the sequences of units/ against a real systemd with a stand-in for the engine, and dies or fails at
// a chosen step. Used by tests/integration/staging.py; the other half of the proof is there.
//
//   staging-driver serve [--fork PIDFILE] [--notify]    the sample service: says "tick N", ends on SIGTERM
//   staging-driver stop UNIT DIR [--die N|--fail N]     takes the unit down; its facts go to DIR
//   staging-driver restore UNIT DIR [--die N|--fail N]  brings it back with a stand-in under its old PID
//   staging-driver replay DIR                           undoes what a dead driver left
//   staging-driver resolve UNIT                         prints the facts, or the blockers
//
// Prints one line "step NAME" for every step. Exit codes: 0 done, 3 an error (its text on stderr).
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <linux/sched.h>
#include <map>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "core/base/io.h"
#include "core/kernel/cgroup.h"
#include "core/transaction/undo_kinds.h"
#include "units/files_archive.h"
#include "units/stage.h"
#include "units/stop.h"
#include "units/undo.h"

using namespace checkpointd;

namespace {

volatile sig_atomic_t terminated = 0;

void on_terminate(int) {
    terminated = 1;
}

// What the sample service does, cold or restored.
[[noreturn]] void tick(const char* word) {
    struct sigaction action = {};
    action.sa_handler = on_terminate;
    sigaction(SIGTERM, &action, nullptr);
    for (int n = 0; !terminated; ++n) {
        dprintf(STDOUT_FILENO, "%s %d\n", word, n);
        usleep(100'000);
    }
    dprintf(STDOUT_FILENO, "bye\n");
    _exit(0);
}

int serve(int argc, char** argv) {
    const char* pid_file = nullptr;
    bool notifies = false;
    for (int i = 2; i < argc; ++i) {
        if (!strcmp(argv[i], "--fork") && i + 1 < argc)
            pid_file = argv[++i];
        else if (!strcmp(argv[i], "--notify"))
            notifies = true;
    }
    if (pid_file && fork() == 0) {
        setsid();
        std::ofstream(pid_file) << getpid() << "\n";
        tick("tick");
    }
    if (pid_file) {
        while (access(pid_file, F_OK) != 0)
            usleep(1000);
        return 0;
    }
    if (notifies)
        sd_notify(0, "READY=1");
    tick("tick");
}

// Dies or fails at the N-th step.
class ChosenSteps : public Steps {
  public:
    ChosenSteps(int die, int fail_at) : die_(die), fail_(fail_at) {}
    Result<void> enter(std::string_view step) override {
        int now = count_++;
        printf("step %.*s\n", static_cast<int>(step.size()), step.data());
        fflush(stdout);
        if (now == die_)
            kill(getpid(), SIGKILL);
        if (now == fail_)
            return fail(ErrorKind::kCancelled, std::string(step), "told to fail here");
        return {};
    }

  private:
    int die_, fail_, count_ = 0;
};

// Holds the tasks of a unit in ptrace-stop, as the engine does.
class Hold {
  public:
    ~Hold() {
        for (pid_t pid : pids_)
            ptrace(PTRACE_DETACH, pid, nullptr, nullptr);
    }
    Result<void> seize(const std::vector<pid_t>& pids) {
        for (pid_t pid : pids) {
            if (ptrace(PTRACE_SEIZE, pid, nullptr, nullptr) != 0 ||
                ptrace(PTRACE_INTERRUPT, pid, nullptr, nullptr) != 0)
                return fail_errno(fmt::format("pid {}", pid), "cannot seize");
            pids_.push_back(pid);
            waitpid(pid, nullptr, __WALL);
        }
        return {};
    }
    Result<void> kill_all() {
        for (pid_t pid : pids_)
            kill(pid, SIGKILL);
        for (pid_t pid : pids_)
            while (waitpid(pid, nullptr, __WALL) > 0) {
            }
        pids_.clear();
        return {};
    }

  private:
    std::vector<pid_t> pids_;
};

UndoTable all_kinds() {
    UndoTable table;
    add_core_undo_kinds(table);
    add_unit_undo_kinds(table);
    return table;
}

Deadline soon() {
    return std::chrono::steady_clock::now() + std::chrono::seconds(20);
}

Result<void> stop_unit(const std::string& unit, const std::string& dir, Steps& steps) {
    UndoTable table = all_kinds();
    CKPT_ASSIGN(Systemd systemd, Systemd::connect());
    CKPT_ASSIGN(UnitFacts facts, resolve_unit(systemd, unit));
    CKPT_ASSIGN(Journal journal, Journal::create(dir + "/journal", table));
    CleanStop stop(systemd, journal, facts);
    auto done = [&]() -> Result<void> {
        CKPT_TRY(stop.prepare(steps));
        Hold hold;
        CKPT_ASSIGN(auto pids, cgroup_processes(facts.cgroup_dir));
        CKPT_TRY(hold.seize(pids));
        CKPT_ASSIGN(facts.externals, find_externals(facts.main_pid, pids));
        CKPT_TRY(write_file(AT_FDCWD, dir + "/facts.json", to_json(facts)));
        CKPT_ASSIGN(ScopedFd archive, open_at(AT_FDCWD, dir + "/files.tar",
                                              O_WRONLY | O_CREAT | O_TRUNC, 0600));
        CKPT_TRY(save_unit_files(facts, facts.main_pid, archive.get()));
        CKPT_TRY(stop.stop(steps, soon(), [&] { return hold.kill_all(); }));
        return stop.finish(steps);
    }();
    if (!done)
        CKPT_TRY(stop.cancel());
    CKPT_TRY(journal.close());
    return done;
}


// Puts the helper's descriptors where the process had them, and closes what is ours.
void take_over_descriptors(const StagedUnit& staged, const UnitFacts& facts) {
    std::map<int, int> wanted;
    for (const auto& [key, fd] : staged.externals())
        for (const UnitExternal& external : facts.externals)
            if (external.key == key && key.starts_with("socket:["))
                wanted[static_cast<int>(external.index) +
                       (external.kind == ExternalKind::kListen ? 3 : 0)] =
                    fcntl(fd.get(), F_DUPFD_CLOEXEC, 200);
    int highest = STDERR_FILENO;
    for (auto [number, fd] : wanted) {
        dup2(fd, number);
        highest = std::max(highest, number);
    }
    dup2(STDOUT_FILENO, STDERR_FILENO);
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    dup2(null, STDIN_FILENO);
    close_range(static_cast<unsigned>(highest) + 1, ~0u, 0);
}

// Runs in the restored process: joins what the helper has, takes its descriptors, ticks on.
[[noreturn]] void act(const StagedUnit& staged, const UnitFacts& facts, uid_t uid, gid_t gid) {
    int main_namespaces = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET;
    if (setns(staged.helper_pidfd(), main_namespaces) != 0)
        _exit(40);
    take_over_descriptors(staged, facts);
    setsid();  // a signal to the driver's process group is not for us
    if (setresgid(gid, gid, gid) != 0 || setresuid(uid, uid, uid) != 0)
        _exit(41);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    raise(SIGSTOP);  // till the driver commits
    tick("restored");
}

// A child of PID 1, in the unit's cgroup, with its old PID, killed with us till it is detached.
Result<pid_t> build_stand_in(const StagedUnit& staged, const UnitFacts& facts) {
    pid_t old_pid = facts.main_pid;
    struct stat owner;
    std::string proc = fmt::format("/proc/{}", staged.helper_pid());
    if (stat(proc.c_str(), &owner) != 0)
        return fail_errno(proc, "cannot tell the helper's user");
    pid_t middle = fork();
    if (middle == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        clone_args args = {};
        args.flags = CLONE_INTO_CGROUP;
        args.exit_signal = SIGCHLD;
        args.cgroup = static_cast<uint64_t>(staged.cgroup_fd());
        args.set_tid = reinterpret_cast<uint64_t>(&old_pid);
        args.set_tid_size = 1;
        long child = syscall(SYS_clone3, &args, sizeof(args));
        if (child == 0)
            act(staged, facts, owner.st_uid, owner.st_gid);
        _exit(child == old_pid ? 0 : 50);
    }
    int status = 0;
    waitpid(middle, &status, 0);
    if (status != 0)
        return fail(ErrorKind::kConflict, fmt::format("pid {}", old_pid), "cannot be made anew");
    if (ptrace(PTRACE_SEIZE, old_pid, nullptr, PTRACE_O_EXITKILL) != 0)
        return fail_errno(fmt::format("pid {}", old_pid), "cannot seize the stand-in");
    waitpid(old_pid, nullptr, __WALL);
    return old_pid;
}

Result<void> restore_unit(const std::string& dir, const StageOptions& options, Steps& steps) {
    UndoTable table = all_kinds();
    CKPT_ASSIGN(std::string text, read_file(AT_FDCWD, dir + "/facts.json"));
    CKPT_ASSIGN(UnitFacts facts, unit_facts_from_json(text));
    CKPT_ASSIGN(Systemd systemd, Systemd::connect());
    CKPT_ASSIGN(Journal journal, Journal::create(dir + "/journal", table));
    auto done = [&]() -> Result<void> {
        CKPT_ASSIGN(StagedUnit staged,
                    StagedUnit::start(systemd, journal, facts, options, steps, soon()));
        CKPT_ASSIGN(ScopedFd archive, open_at(AT_FDCWD, dir + "/files.tar", O_RDONLY));
        CKPT_TRY(restore_unit_files(facts, staged.helper_pid(), archive.get()));
        CKPT_TRY(steps.enter("driver.build"));
        CKPT_ASSIGN(pid_t pid, build_stand_in(staged, facts));
        auto commit = [&]() -> Result<void> {
            CKPT_TRY(steps.enter("driver.commit"));
            kill(pid, SIGCONT);
            if (ptrace(PTRACE_DETACH, pid, nullptr, nullptr) != 0)
                return fail_errno(fmt::format("pid {}", pid), "cannot detach");
            return {};
        };
        auto handed = staged.hand_over(pid, commit, steps, soon());
        if (!handed) {
            kill(pid, SIGKILL);  // as a forest that is dropped
            waitpid(pid, nullptr, __WALL);
            CKPT_TRY(staged.abandon());
        }
        return handed;
    }();
    CKPT_TRY(journal.close());
    return done;
}

Result<void> replay(const std::string& dir) {
    UndoTable table = all_kinds();
    CKPT_TRY(Journal::replay(dir + "/journal", table));
    return {};
}

Result<void> print_facts(const std::string& unit) {
    CKPT_ASSIGN(Systemd systemd, Systemd::connect());
    CKPT_ASSIGN(UnitFacts facts, resolve_unit(systemd, unit));
    printf("%s", to_json(facts).c_str());
    return {};
}

Result<void> run(int argc, char** argv) {
    std::string verb = argc > 1 ? argv[1] : "";
    int die = -1, fail_at = -1;
    StageOptions options;
    for (int i = 4; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--die"))
            die = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--fail"))
            fail_at = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--helper"))
            options.helper = argv[i + 1];
    }
    ChosenSteps steps(die, fail_at);
    if (verb == "stop" && argc > 3)
        return stop_unit(argv[2], argv[3], steps);
    if (verb == "restore" && argc > 3)
        return restore_unit(argv[3], options, steps);
    if (verb == "replay" && argc > 2)
        return replay(argv[2]);
    if (verb == "resolve" && argc > 2)
        return print_facts(argv[2]);
    return fail(ErrorKind::kBadInput, "staging-driver", "wrong arguments");
}

}  // namespace

int main(int argc, char** argv) {
    if (argc > 1 && !strcmp(argv[1], "serve"))
        return serve(argc, argv);
    auto done = run(argc, argv);
    if (!done)
        fprintf(stderr, "%s\n", done.error().text().c_str());
    return done ? 0 : 3;
}
