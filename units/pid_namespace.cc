// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/pid_namespace.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <linux/close_range.h>
#include <optional>
#include <poll.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <utility>

#include "core/base/io.h"
#include "core/base/pipe.h"
#include "core/kernel/pidfd.h"
#include "core/kernel/proc_status.h"
#include "units/proc_mount.h"
#include "units/sibling.h"
#include "units/unit_process.h"

namespace checkpointd {
namespace {

constexpr const char* kObject = "PID namespace";
constexpr int kLifeline = 3;  // see pid_namespace/init.c

// What the first process does before its program, one step after the other; their names are for errors.
enum class Birth { kNamespaces, kMounts, kProc, kSession, kDescriptors, kCapabilities, kProgram };
constexpr std::array<const char*, 7> kBirthNames = {
    "enter the unit's namespaces", "copy the unit's mount namespace", "mount its own /proc",
    "make a session",              "take its descriptors",            "give up its capabilities",
    "run its first program"};

// Descriptors stand out of the way of 0 to kLifeline.
struct Newborn {
    int namespaces = 0;
    int helper = -1;
    std::optional<ProcMounter> proc;  // none where the unit has no /proc
    int null = -1, lifeline = -1, program = -1, report = -1;
    std::vector<ScopedFd> keep;
};

// What we mount must not arrive where the copy was made of; what is mounted there goes on arriving here.
bool copy_mounts() {
    return unshare(CLONE_NEWNS) == 0 && mount(nullptr, "/", nullptr, MS_REC | MS_SLAVE, nullptr) == 0;
}

bool install_descriptors(const Newborn& child) {
    for (int number = 0; number < kLifeline; ++number)
        if (dup2(child.null, number) < 0)
            return false;
    return dup2(child.lifeline, kLifeline) >= 0 &&
           syscall(SYS_close_range, kLifeline + 1, ~0u, CLOSE_RANGE_CLOEXEC) == 0;
}

[[noreturn]] void be_born(Newborn& child) {
    auto must = [&child](bool done, Birth step) {
        if (!done)
            give_up(child.report, static_cast<unsigned>(step));
    };
    must(child.namespaces == 0 || setns(child.helper, child.namespaces) == 0, Birth::kNamespaces);
    must(copy_mounts(), Birth::kMounts);
    must(!child.proc || child.proc->mount(), Birth::kProc);
    must(setsid() >= 0 && chdir("/") == 0, Birth::kSession);
    must(install_descriptors(child), Birth::kDescriptors);
    // It stays root, so that it is as much or as little in the unit's /proc as PID 1 would be; but nothing more.
    must(syscall(SYS_setgroups, 0, nullptr) == 0 && keep_capabilities(0), Birth::kCapabilities);
    char name[] = "pid-init";
    char* argv[] = {name, nullptr};
    char* no_environment[] = {nullptr};
    syscall(SYS_execveat, child.program, "", argv, no_environment, AT_EMPTY_PATH);
    give_up(child.report, static_cast<unsigned>(Birth::kProgram));
}

Result<int> out_of_the_way(Newborn& child, int fd) {
    constexpr int kFloor = 16;
    ScopedFd copy(fcntl(fd, F_DUPFD_CLOEXEC, kFloor));
    if (!copy)
        return fail_errno(kObject, "cannot duplicate a descriptor");
    child.keep.push_back(std::move(copy));
    return child.keep.back().get();
}

Result<void> plan_descriptors(const PidNamespacePlan& plan, int lifeline, int report, Newborn& child) {
    CKPT_ASSIGN(ScopedFd null, open_at(AT_FDCWD, "/dev/null", O_RDWR));
    CKPT_ASSIGN(ScopedFd program, open_at(AT_FDCWD, plan.program, O_RDONLY));
    CKPT_ASSIGN(child.null, out_of_the_way(child, null.get()));
    CKPT_ASSIGN(child.program, out_of_the_way(child, program.get()));
    CKPT_ASSIGN(child.helper, out_of_the_way(child, plan.helper_pidfd));
    CKPT_ASSIGN(child.lifeline, out_of_the_way(child, lifeline));
    CKPT_ASSIGN(child.report, out_of_the_way(child, report));
    return {};
}

// Its processes could not choose numbers in a namespace that is not theirs, and in one that is they could not
// mount a /proc where parts of the unit's are hidden.
Result<void> check_users(pid_t helper) {
    CKPT_ASSIGN(const std::string own, read_link(AT_FDCWD, "/proc/self/ns/user"));
    CKPT_ASSIGN(const std::string theirs, read_link(AT_FDCWD, fmt::format("/proc/{}/ns/user", helper)));
    if (own == theirs)
        return {};
    return fail(ErrorKind::kUnsupported, kObject,
                "a unit with a user namespace of its own cannot be restored in one",
                "stop who has its PIDs, or switch PrivateUsers= off");
}

Result<Newborn> plan_newborn(const PidNamespacePlan& plan, int lifeline, int report) {
    Newborn child;
    child.namespaces = differing_namespaces(plan.helper_pid);
    CKPT_ASSIGN(const std::string mounts,
                read_file(AT_FDCWD, fmt::format("/proc/{}/mountinfo", plan.helper_pid)));
    if (auto proc = parse_proc_mount(mounts))
        child.proc.emplace(std::move(*proc));
    CKPT_TRY(plan_descriptors(plan, lifeline, report, child));
    return child;
}

struct ForkedNewborn {
    Newborn& plan;
    int our_lifeline, report_reader;  // with these open in the child nobody would ever see their ends
};

[[noreturn]] void begin(void* context) {
    const auto& child = *static_cast<const ForkedNewborn*>(context);
    close(child.our_lifeline);
    close(child.report_reader);
    be_born(child.plan);
}

Result<ScopedFd> fork_newborn(const PidNamespacePlan& plan, ForkedNewborn child) {
    auto pid = fork_sibling(plan.cgroup_fd, begin, &child, kObject, CLONE_NEWPID);
    if (!pid)
        return tl::unexpected(std::move(pid).error().with_remedy(
            "it needs one process more than the unit has: see its TasksMax="));
    return open_pidfd(*pid);
}

}  // namespace

Result<PidNamespace> PidNamespace::make(const PidNamespacePlan& plan, Deadline deadline) {
    CKPT_TRY(check_users(plan.helper_pid));
    int pair[2] = {-1, -1};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        return fail_errno(kObject, "socketpair");
    ScopedFd ours(pair[0]), theirs(pair[1]);
    CKPT_ASSIGN(Pipe report, make_pipe(kObject));
    CKPT_ASSIGN(Newborn child, plan_newborn(plan, theirs.get(), report.write_end.get()));
    CKPT_ASSIGN(ScopedFd init, fork_newborn(plan, {child, ours.get(), report.read_end.get()}));
    PidNamespace made(std::move(init), std::move(ours));
    report.write_end.reset();
    child.keep.clear();
    CKPT_TRY(wait_born(std::move(report.read_end), kBirthNames, kObject, deadline));
    return made;
}

PidNamespace::~PidNamespace() {
    if (!init_)
        return;
    constexpr int kPatienceMs = 10000;
    (void)pidfd_send_signal(init_.get(), SIGKILL);
    pollfd ended = {init_.get(), POLLIN, 0};
    (void)poll(&ended, 1, kPatienceMs);
}

Result<void> PidNamespace::keep_for(const std::vector<pid_t>& roots) {
    std::vector<pid_t> numbers = roots;
    numbers.push_back(0);
    const auto* at = reinterpret_cast<const char*>(numbers.data());
    for (size_t left = numbers.size() * sizeof(pid_t); left > 0;) {
        ssize_t sent = send(lifeline_.get(), at, left, MSG_NOSIGNAL);
        if (sent < 0)
            return fail_errno(kObject, "its first process does not listen");
        at += sent;
        left -= static_cast<size_t>(sent);
    }
    return {};
}

// By its program, and that by a name which only the host's own mounts can give.
pid_t find_namespace_init(const std::vector<pid_t>& pids) {
    auto is_init = [](pid_t pid) {
        auto status = read_status(pid);
        return status && status->ns_pids.size() > 1 && status->ns_pids.back() == 1 &&
               read_link(AT_FDCWD, fmt::format("/proc/{}/exe", pid)).value_or("").starts_with(kPidInitProgram);
    };
    auto found = std::find_if(pids.begin(), pids.end(), is_init);
    return found == pids.end() ? 0 : *found;
}

}  // namespace checkpointd
