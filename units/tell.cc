// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/tell.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <string>

#include "core/base/io.h"
#include "core/base/pipe.h"
#include "core/base/send_descriptors.h"
#include "core/kernel/proc_status.h"
#include "core/kernel/proc_task.h"
#include "core/transaction/recorded_process.h"
#include "units/unit_process.h"

namespace checkpointd {
namespace {

constexpr const char* kTell = "units.tell";
// How long the undo waits for a socket whose queue is full.
constexpr auto kPatience = std::chrono::seconds(5);

std::string object_of(pid_t pid) {
    auto name = read_file(AT_FDCWD, fmt::format("/proc/{}/comm", pid));
    return fmt::format("pid {} ({})", pid,
                       name && !name->empty() ? name->substr(0, name->size() - 1) : "?");
}

// The value of the signal before: what kind of a checkpoint it will be.
int value_of(WayDown way) {
    switch (way) {
        case WayDown::kStop:
            return 1;
        case WayDown::kSuspend:
            return 2;
        case WayDown::kSnapshot:
            return 3;
    }
    return 0;
}

const char* name_of(WayDown way) {
    switch (way) {
        case WayDown::kStop:
            return "stop";
        case WayDown::kSuspend:
            return "suspend";
        case WayDown::kSnapshot:
            return "snapshot";
    }
    return "";
}

const char* name_of(TellOutcome outcome) {
    switch (outcome) {
        case TellOutcome::kRestored:
            return "restored";
        case TellOutcome::kWentOn:
            return "went-on";
        case TellOutcome::kFailed:
            return "failed";
    }
    return "";
}

// ---- the signal

uint64_t bit_of(int signal) {
    return uint64_t{1} << (signal - 1);
}

bool is_ignored_by_default(int signal) {
    return signal == SIGCHLD || signal == SIGURG || signal == SIGWINCH || signal == SIGCONT;
}

// While a thread waits for blocked signals the kernel unblocks them (kernel/signal.c,
// do_sigtimedwait()).
bool waits_for(pid_t pid, pid_t tid, int signal) {
    auto call = read_file(AT_FDCWD, fmt::format("/proc/{}/task/{}/syscall", pid, tid));
    const std::string wanted = fmt::format("{} 0x", SYS_rt_sigtimedwait);
    if (!call || !call->starts_with(wanted))
        return false;
    uint64_t address = 0, set = 0;
    std::from_chars(call->data() + wanted.size(), call->data() + call->size(), address, 16);
    auto memory = open_at(AT_FDCWD, fmt::format("/proc/{}/mem", pid), O_RDONLY);
    return memory &&
           pread(memory->get(), &set, sizeof(set), static_cast<off_t>(address)) == sizeof(set) &&
           (set & bit_of(signal)) != 0;
}

bool is_blocked(pid_t pid, int signal) {
    const auto tids = read_task_list(pid).value_or(std::vector<pid_t>());
    return std::all_of(tids.begin(), tids.end(), [&](pid_t tid) {
        auto thread = read_thread_status(pid, tid);
        return !thread || (thread->sig_blocked & bit_of(signal)) != 0 ||
               waits_for(pid, tid, signal);
    });
}

// A signal that nobody handles must not be sent: most would end the program.
Result<void> check_takes(pid_t pid, int signal) {
    CKPT_ASSIGN(const auto status, read_status(pid));
    if (((status.sig_caught | status.sig_ignored) & bit_of(signal)) != 0 ||
        is_ignored_by_default(signal) || is_blocked(pid, signal))
        return {};
    return fail(ErrorKind::kConflict, object_of(pid),
                fmt::format("does not handle {}, by which it is to be told, and would end",
                            signal_name(signal)),
                "correct TellBefore= and TellAfter= of the unit, or \"tell\" of the policy");
}

Result<void> send_signal(pid_t pid, int signal, int value) {
    CKPT_TRY(check_takes(pid, signal));
    CKPT_ASSIGN(ScopedFd process, open_pidfd(pid));
    siginfo_t info = {};
    info.si_signo = signal;
    info.si_code = SI_QUEUE;
    info.si_pid = getpid();
    info.si_uid = getuid();
    info.si_value.sival_int = value;
    if (syscall(SYS_pidfd_send_signal, process.get(), signal, &info, 0) != 0)
        return fail_errno(object_of(pid), fmt::format("cannot send {}", signal_name(signal)));
    return {};
}

Result<void> wait_taken(pid_t pid, int signal, Deadline deadline) {
    return poll_until(deadline, object_of(pid),
                      fmt::format("has not taken {} in time", signal_name(signal)),
                      [&]() -> Result<bool> {
                          CKPT_ASSIGN(const auto status, read_status(pid));
                          return (status.shared_sig_pending & bit_of(signal)) == 0;
                      });
}

// ---- the socket

// As the process would find it: links lead nowhere out of its root.
Result<ScopedFd> find_socket(pid_t pid, const std::string& path) {
    CKPT_ASSIGN(ScopedFd root,
                open_at(AT_FDCWD, fmt::format("/proc/{}/root", pid), O_PATH | O_DIRECTORY));
    open_how how = {};
    how.flags = O_PATH | O_CLOEXEC;
    how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
    ScopedFd found(
        static_cast<int>(syscall(SYS_openat2, root.get(), path.c_str(), &how, sizeof(how))));
    if (!found)
        return fail_errno(path, "the socket at which the program is to be told is not there");
    return found;
}

Result<ScopedFd> connect_to(pid_t pid, const std::string& path) {
    CKPT_ASSIGN(const ScopedFd found, find_socket(pid, path));
    ScopedFd fd(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    fmt::format_to_n(address.sun_path, sizeof(address.sun_path) - 1, "/proc/self/fd/{}",
                     found.get());
    if (!fd || connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0)
        return fail_errno(path,
                          "the program does not listen at the socket at which it is to be told");
    return fd;
}

timeval time_left(Deadline deadline) {
    const auto left = std::chrono::duration_cast<std::chrono::microseconds>(
        deadline - std::chrono::steady_clock::now());
    const auto usec = std::max<int64_t>(left.count(), 1);  // zero would be for ever
    return {static_cast<time_t>(usec / 1000000), static_cast<suseconds_t>(usec % 1000000)};
}

// With the descriptor, unless that is -1. No deadline: does not wait for room in the queue.
Result<void> send_message(pid_t pid, const std::string& path, const std::string& text, int descriptor,
                          std::optional<Deadline> deadline) {
    CKPT_ASSIGN(const ScopedFd fd, connect_to(pid, path));
    if (deadline) {
        const timeval limit = time_left(*deadline);
        setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    }
    const int flags = MSG_NOSIGNAL | (deadline ? 0 : MSG_DONTWAIT);
    if (send_descriptors(fd.get(), text.data(), text.size(), &descriptor, descriptor >= 0 ? 1 : 0, flags) < 0)
        return fail_errno(path, "cannot send to the program's socket");
    return {};
}

Result<ScopedFd> ask_at_socket(const UnitFacts& facts, WayDown way, Deadline deadline) {
    // The program gets the end for reading, so that nothing it does with it can end it by SIGPIPE. Ours
    // is in error as soon as that is closed (pipe(7)).
    CKPT_ASSIGN(Pipe pipe, make_pipe("tell"));
    const timeval left = time_left(deadline);
    const auto text = fmt::format("EVENT=before\nMODE={}\nUNIT={}\nTIMEOUT_USEC={}\n", name_of(way),
                                  facts.id, left.tv_sec * 1000000 + left.tv_usec);
    CKPT_TRY(send_message(facts.main_pid, *facts.tell.socket, text, pipe.read_end.get(), deadline));
    return std::move(pipe.write_end);
}

Result<void> wait_ready(const UnitFacts& facts, const ScopedFd& ours, Deadline deadline) {
    return poll_until(
        deadline, object_of(facts.main_pid),
        fmt::format("has not said at {} in time that it is ready", *facts.tell.socket),
        [&]() -> Result<bool> {
            pollfd state = {ours.get(), 0, 0};
            return poll(&state, 1, 0) == 1;
        });
}

// ---- both

Result<void> ask_and_wait(const UnitFacts& facts, WayDown way, Deadline deadline) {
    const int signal = facts.tell.before.value_or(0);
    ScopedFd ready;
    if (!facts.tell.socket.value_or("").empty()) {
        CKPT_ASSIGN(ready, ask_at_socket(facts, way, deadline));
    }
    if (signal != 0) {
        CKPT_TRY(send_signal(facts.main_pid, signal, value_of(way)));
        CKPT_TRY(wait_taken(facts.main_pid, signal, deadline));
    }
    return ready ? wait_ready(facts, ready, deadline) : Result<void>();
}

bool tell(pid_t pid, const std::string& unit, TellOutcome outcome, int signal,
          const std::string& path, std::optional<Deadline> deadline) {
    const auto text = fmt::format("EVENT=after\nRESULT={}\nUNIT={}\n", name_of(outcome), unit);
    const bool by_socket = path.empty() || send_message(pid, path, text, -1, deadline);
    const bool by_signal = signal == 0 || send_signal(pid, signal, static_cast<int>(outcome));
    return by_socket && by_signal;
}

// UNIT, PID, START TIME, OUTCOME, SIGNAL, SOCKET. Nobody can be told of a failure, and telling
// again is no use.
Result<void> undo_tell(const UndoArgs& args) {
    if (args.size() != 6)
        return fail(ErrorKind::kInternal, kTell, "wrong arguments in the journal");
    CKPT_ASSIGN(const auto main, RecordedProcess::parse(args, 1));
    CKPT_ASSIGN(const bool is_alive, main.lives());
    if (is_alive)
        (void)tell(main.pid, args[0], static_cast<TellOutcome>(std::stoi(args[3])), std::stoi(args[4]),
                   args[5], std::chrono::steady_clock::now() + kPatience);
    return {};
}

}  // namespace

void check_can_be_told(pid_t main_pid, const TellSettings& settings, Blockers& blockers) {
    for (int signal : {settings.before.value_or(0), settings.after.value_or(0)})
        if (signal != 0)
            if (auto takes = check_takes(main_pid, signal); !takes)
                blockers.add(std::move(takes).error());
    if (settings.socket.value_or("").empty() || settings.goes_on_if_silent.value_or(false))
        return;
    if (auto reached = connect_to(main_pid, *settings.socket); !reached)
        blockers.add(std::move(reached).error().with_remedy(
            "let the program bind a datagram socket there, or correct TellSocket= of the unit"));
}

Result<void> tell_before(const UnitFacts& facts, WayDown way, Deadline deadline) {
    auto ready = ask_and_wait(facts, way, deadline);
    if (ready || facts.tell.goes_on_if_silent.value_or(false))
        return {};
    if (ready.error().kind != ErrorKind::kTimeout)
        return ready;
    return tl::unexpected(std::move(ready).error().with_remedy(
        "raise timeouts.tell in the policy, or let silence pass: tell: {when-silent: go-on}"));
}

bool tell_after(const UnitFacts& facts, pid_t main_pid, TellOutcome outcome) {
    return tell(main_pid, facts.id, outcome, facts.tell.after.value_or(0),
                facts.tell.socket.value_or(""), {});
}

Result<uint64_t> undo_by_telling(Journal& journal, const UnitFacts& facts, pid_t main_pid,
                                 TellOutcome outcome) {
    if (!facts.tell.asks())
        return 0;
    UndoArgs args{facts.id};
    CKPT_TRY(RecordedProcess::append(args, main_pid));
    args.insert(args.end(), {std::to_string(static_cast<int>(outcome)),
                             std::to_string(facts.tell.after.value_or(0)), facts.tell.socket.value_or("")});
    return journal.add(kTell, std::move(args));
}

void add_tell_undo_kind(UndoTable& table) {
    table.add(kTell, undo_tell);
}

}  // namespace checkpointd
