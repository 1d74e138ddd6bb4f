// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/placeholder.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/securebits.h>
#include <poll.h>
#include <sched.h>
#include <sstream>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>
#include <utility>

#include "core/base/io.h"
#include "core/base/pipe.h"
#include "core/kernel/proc_task.h"
#include "units/placeholder/commands.h"
#include "units/sibling.h"
#include "units/unit_process.h"

namespace checkpointd {
namespace {

constexpr const char* kNotifySocket = "/run/systemd/notify";
constexpr std::string_view kDeleted = " (deleted)";

// What the forked child does, one step after the other; their names are for errors.
enum class Birth { kNamespaces, kSession, kDescriptors, kUser, kCapabilities, kProgram };
constexpr std::array<const char*, 6> kBirthNames = {
    "enter the unit's namespaces", "make a session",         "take its descriptors",
    "take on the unit's user",     "reduce its capabilities", "run its program"};

// Everything that the child needs, ready made: after clone3() in a process that had threads it may neither
// allocate nor take a lock.
struct ChildPlan {
    int main_pidfd = -1;
    int namespaces = 0;  // CLONE_NEW* that differ from ours
    std::vector<ScopedFd> keep;   // descriptors, numbered out of the way
    std::vector<int> descriptors;  // descriptor i of the program is a duplicate of descriptors[i]
    int program = -1;
    int report = -1;
    ScopedFd gate;
    uid_t user = 0;
    gid_t group = 0;
    std::vector<gid_t> groups;
    std::vector<std::string> words;
    std::vector<char*> argv;
};

// The user namespace of a process, or nothing if it is ours.
Result<std::optional<ScopedFd>> own_user_namespace(pid_t pid) {
    const std::string path = fmt::format("/proc/{}/ns/user", pid);
    CKPT_ASSIGN(std::string ours, read_link(AT_FDCWD, "/proc/self/ns/user"));
    CKPT_ASSIGN(std::string theirs, read_link(AT_FDCWD, path));
    if (theirs == ours)
        return std::nullopt;
    CKPT_ASSIGN(ScopedFd fd, open_at(AT_FDCWD, path, O_RDONLY));
    return fd;
}

// A memfd of 32-bit numbers, read by the program again and again.
Result<ScopedFd> number_file(const std::vector<pid_t>& numbers) {
    ScopedFd file(memfd_create("numbers", MFD_CLOEXEC));
    if (!file)
        return fail_errno("placeholder", "cannot make a memfd");
    CKPT_TRY(write_all(file.get(), numbers.data(), numbers.size() * sizeof(pid_t), "placeholder"));
    return file;
}

Result<ScopedFd> notify_socket() {
    ScopedFd fd(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, kNotifySocket, sizeof(address.sun_path) - 1);
    if (!fd || connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0)
        return fail_errno(kNotifySocket, "cannot connect to it");
    return fd;
}

// A number that a unit closed gets /dev/null, as any program expects to have all three.
Result<ScopedFd> standard_stream(int pidfd, int number) {
    ScopedFd fd(static_cast<int>(syscall(SYS_pidfd_getfd, pidfd, number, 0)));
    if (fd)
        return fd;
    return open_at(AT_FDCWD, "/dev/null", O_RDWR);
}

template <typename Number>
std::vector<Number> status_numbers(pid_t pid, std::string_view key) {
    std::istringstream text(status_field(pid, key));
    std::vector<Number> out;
    for (Number value; text >> value;)
        out.push_back(value);
    return out;
}

// Duplicates `fd` to a number that none of the program's descriptors has.
Result<int> out_of_the_way(ChildPlan& child, int fd, int floor) {
    ScopedFd copy(fcntl(fd, F_DUPFD_CLOEXEC, floor));
    if (!copy)
        return fail_errno("placeholder", "cannot duplicate a descriptor");
    child.keep.push_back(std::move(copy));
    return child.keep.back().get();
}

Result<void> plan_descriptors(const PlaceholderPlan& plan, int report, ChildPlan& child) {
    std::vector<ScopedFd> own;
    for (int number = 0; number < Placeholder::kFirstHeld; ++number) {
        CKPT_ASSIGN(ScopedFd stream, standard_stream(child.main_pidfd, number));
        own.push_back(std::move(stream));
    }
    CKPT_ASSIGN(ScopedFd numbers, number_file(plan.numbers));
    CKPT_ASSIGN(ScopedFd notify, notify_socket());
    CKPT_ASSIGN(ScopedFd program, open_at(AT_FDCWD, plan.program, O_RDONLY));
    std::vector<int> wanted;
    for (const ScopedFd& fd : own)
        wanted.push_back(fd.get());
    wanted.insert(wanted.end(), plan.held.begin(), plan.held.end());
    wanted.insert(wanted.end(), {numbers.get(), notify.get()});
    CKPT_ASSIGN(auto user_namespace, own_user_namespace(plan.main_pid));
    if (user_namespace)
        wanted.push_back(user_namespace->get());
    const int floor = static_cast<int>(wanted.size()) + 16;
    for (int fd : wanted) {
        CKPT_ASSIGN(int copy, out_of_the_way(child, fd, floor));
        child.descriptors.push_back(copy);
    }
    CKPT_ASSIGN(child.program, out_of_the_way(child, program.get(), floor));
    CKPT_ASSIGN(child.main_pidfd, out_of_the_way(child, child.main_pidfd, floor));
    CKPT_ASSIGN(child.report, out_of_the_way(child, report, floor));
    return {};
}

Result<void> plan_user(const PlaceholderPlan& plan, ChildPlan& child) {
    auto users = status_numbers<uid_t>(plan.main_pid, "Uid");
    auto groups = status_numbers<gid_t>(plan.main_pid, "Gid");
    if (users.size() != 4 || groups.size() != 4)
        return fail(ErrorKind::kGone, fmt::format("pid {}", plan.main_pid), "has no user: it is gone");
    child.user = users[0];
    child.group = groups[0];
    child.groups = status_numbers<gid_t>(plan.main_pid, "Groups");
    return {};
}

void plan_words(const PlaceholderPlan& plan, ChildPlan& child) {
    const size_t numbers_fd = Placeholder::kFirstHeld + plan.held.size();
    child.words = {plan.program, plan.image, std::to_string(plan.end_signal),
                   std::to_string(plan.watchdog_usec), std::to_string(numbers_fd),
                   std::to_string(numbers_fd + 1)};
    for (std::string& word : child.words)
        child.argv.push_back(word.data());
    child.argv.push_back(nullptr);
}

bool install_descriptors(const ChildPlan& child) {
    unsigned next = 0;
    for (int fd : child.descriptors)
        if (dup2(fd, static_cast<int>(next++)) < 0)
            return false;
    // What is left closes at exec; nothing of ours may stay in the unit for longer than that.
    return syscall(SYS_close_range, next, ~0u, CLOSE_RANGE_CLOEXEC) == 0;
}

// Raw calls: the C library's would look for other threads.
bool become_user(const ChildPlan& child) {
    constexpr unsigned long bits = SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP |
                                   SECBIT_NO_SETUID_FIXUP_LOCKED;
    return prctl(PR_SET_SECUREBITS, bits) == 0 &&
           syscall(SYS_setgroups, child.groups.size(), child.groups.data()) == 0 &&
           syscall(SYS_setresgid, child.group, child.group, child.group) == 0 &&
           syscall(SYS_setresuid, child.user, child.user, child.user) == 0;
}

[[noreturn]] void be_born(const ChildPlan& child) {
    auto must = [&child](bool done, Birth step) {
        if (!done)
            give_up(child.report, static_cast<unsigned>(step));
    };
    char byte;
    if (read(child.gate.get(), &byte, 1) != 1)  // nobody wants us any more
        _exit(0);
    must(child.namespaces == 0 || setns(child.main_pidfd, child.namespaces) == 0, Birth::kNamespaces);
    must(setsid() >= 0 && chdir("/") == 0, Birth::kSession);
    must(install_descriptors(child), Birth::kDescriptors);
    must(become_user(child), Birth::kUser);
    // clone3() with a chosen PID needs this one (capabilities(7)), and nothing else needs any.
    must(keep_capabilities(uint64_t{1} << CAP_CHECKPOINT_RESTORE), Birth::kCapabilities);
    char* no_environment[] = {nullptr};
    syscall(SYS_execveat, child.program, "", child.argv.data(), no_environment, AT_EMPTY_PATH);
    give_up(child.report, static_cast<unsigned>(Birth::kProgram));
}

struct ForkedChild {
    const ChildPlan& plan;
    int gate_writer, report_reader;
};

[[noreturn]] void begin(void* context) {
    const auto& child = *static_cast<const ForkedChild*>(context);
    close(child.gate_writer);
    close(child.report_reader);
    be_born(child.plan);
}

Result<pid_t> fork_child(const PlaceholderPlan& plan, ForkedChild child) {
    auto pid = fork_sibling(plan.cgroup_fd, begin, &child, "placeholder");
    if (!pid)
        pid.error().remedy = "it needs one process more than the unit has: see its TasksMax=";
    return pid;
}

Result<std::vector<std::string>> command_line(pid_t pid) {
    CKPT_ASSIGN(std::string text, read_file(AT_FDCWD, fmt::format("/proc/{}/cmdline", pid)));
    std::vector<std::string> words;
    for (size_t at = 0; at < text.size(); at = text.find('\0', at) + 1)
        words.emplace_back(text.c_str() + at);
    return words;
}

}  // namespace

Result<Placeholder> Placeholder::prepare(const PlaceholderPlan& plan) {
    CKPT_ASSIGN(ScopedFd main, open_pidfd(plan.main_pid));
    CKPT_ASSIGN(Pipe gate, make_pipe("placeholder"));
    CKPT_ASSIGN(Pipe report, make_pipe("placeholder"));
    ChildPlan child;
    child.main_pidfd = main.get();
    child.namespaces = differing_namespaces(plan.main_pid);
    child.gate = std::move(gate.read_end);
    CKPT_TRY(plan_descriptors(plan, report.write_end.get(), child));
    CKPT_TRY(plan_user(plan, child));
    plan_words(plan, child);
    Placeholder made;
    CKPT_ASSIGN(made.pid_,
                fork_child(plan, {child, gate.write_end.get(), report.read_end.get()}));
    CKPT_ASSIGN(made.pidfd_, open_pidfd(made.pid_));
    report.write_end.reset();
    made.image_ = plan.image;
    made.gate_ = std::move(gate.write_end);
    made.report_ = std::move(report.read_end);
    return made;
}

Result<void> Placeholder::start(Deadline deadline) {
    char go = 1;
    CKPT_TRY(write_all(gate_.get(), &go, 1, "placeholder"));
    gate_.reset();
    CKPT_TRY(wait_born(std::move(report_), kBirthNames, "placeholder", deadline));
    return wait_ready(deadline);
}

Result<std::optional<Placeholder>> Placeholder::find(pid_t pid) {
    auto handle = open_pidfd(pid);
    auto program = read_link(AT_FDCWD, fmt::format("/proc/{}/exe", pid));
    if (!handle || !program)
        return std::nullopt;
    // The package may have been upgraded since.
    if (program->ends_with(kDeleted))
        program->resize(program->size() - kDeleted.size());
    auto words = command_line(pid);
    if (*program != kPlaceholderProgram || !words || words->size() != 6)
        return std::nullopt;
    Placeholder found;
    found.pid_ = pid;
    found.pidfd_ = std::move(*handle);
    found.image_ = (*words)[1];
    return found;
}

Result<std::optional<ScopedFd>> Placeholder::user_namespace() const {
    CKPT_ASSIGN(auto numbers, read_descriptor_list(pid_));
    // It is the last one; those before are the unit's.
    std::sort(numbers.rbegin(), numbers.rend());
    for (int number : numbers) {
        auto link = read_link(AT_FDCWD, fmt::format("/proc/{}/fd/{}", pid_, number));
        if (!link || !link->starts_with("user:["))
            continue;
        CKPT_ASSIGN(ScopedFd fd, take_descriptor(pidfd_.get(), number, "placeholder"));
        return fd;
    }
    return std::nullopt;
}

Result<void> Placeholder::command(int value) const {
    siginfo_t info = {};
    info.si_signo = SIGURG;
    info.si_code = SI_QUEUE;
    info.si_pid = getpid();
    info.si_uid = getuid();
    info.si_value.sival_int = value;
    if (syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGURG, &info, 0) != 0)
        return fail_errno("placeholder", "cannot be told anything");
    return {};
}

Result<void> Placeholder::wait_called(const char* name, Deadline deadline) const {
    const std::string wanted = fmt::format("{}\n", name);
    return poll_until(deadline, "placeholder", fmt::format("is not \"{}\" in time", name),
                      [&]() -> Result<bool> {
                          pollfd ended = {pidfd_.get(), POLLIN, 0};
                          if (poll(&ended, 1, 0) == 1)
                              return fail(ErrorKind::kGone, "placeholder", "has died");
                          CKPT_ASSIGN(std::string now,
                                      read_file(AT_FDCWD, fmt::format("/proc/{}/comm", pid_)));
                          return now == wanted;
                      });
}

Result<void> Placeholder::wait_end(Deadline deadline) const {
    return poll_until(deadline, "placeholder", "does not end", [&]() -> Result<bool> {
        pollfd ended = {pidfd_.get(), POLLIN, 0};
        return poll(&ended, 1, 0) == 1;
    });
}

Result<void> Placeholder::wait_ready(Deadline deadline) const {
    return wait_called(HOLDER_WAITS, deadline);
}

Result<void> Placeholder::hold_numbers(Deadline deadline) const {
    CKPT_TRY(command(kHolderHold));
    return wait_called(HOLDER_HOLDS, deadline);
}

Result<void> Placeholder::give_back_numbers(Deadline deadline) const {
    CKPT_TRY(command(kHolderGiveBack));
    return wait_called(HOLDER_GAVE_BACK, deadline);
}

Result<void> Placeholder::dismiss(Deadline deadline) const {
    if (auto told = command(kHolderLeave); !told && told.error().errno_code != ESRCH)
        return told;
    return wait_end(deadline);
}

Result<void> Placeholder::kill(Deadline deadline) const {
    if (syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0) != 0 && errno != ESRCH)
        return fail_errno("placeholder", "cannot be killed");
    return wait_end(deadline);
}

Result<std::optional<Placeholder>> find_placeholder(Systemd& systemd, const std::string& unit) {
    CKPT_ASSIGN(uint64_t pid, systemd.number(unit, "Service", "MainPID"));
    if (pid == 0)
        return std::nullopt;
    return Placeholder::find(static_cast<pid_t>(pid));
}

}  // namespace checkpointd
