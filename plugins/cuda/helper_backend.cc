// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/helper_backend.h"

#include <cerrno>
#include <cstring>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "core/base/io.h"
#include "core/base/send_descriptors.h"
#include "plugins/cuda/turn.h"

extern char** environ;

namespace checkpointd::cuda {
namespace {

constexpr const char* kHelper = "checkpointd-cuda";
// One that was not there yet loads the driver before it answers anybody.
constexpr std::chrono::seconds kGreetTime{20};

Result<ScopedFd> connect_to_socket() {
    ScopedFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    if (!fd)
        return fail_errno(kHelper, "cannot make a socket");
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, kHelperSocket, sizeof(address.sun_path) - 1);
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0)
        return fail_errno(kHelperSocket, "cannot connect");
    return fd;
}

// It ends when its socket does, after the call that it is in. Its parent need not wait: init or we reap it.
Result<ScopedFd> start_own() {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
        return fail_errno(kHelper, "cannot make sockets");
    ScopedFd ours(ends[0]);
    ScopedFd theirs(ends[1]);
    const std::string number = std::to_string(theirs.get());
    const char* argv[] = {CHECKPOINTD_CUDA_HELPER, "--fd", number.c_str(), nullptr};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, theirs.get(), theirs.get());  // to itself: without close-on-exec
    pid_t pid = 0;
    const int code = posix_spawn(&pid, argv[0], &actions, nullptr, const_cast<char**>(argv), environ);
    posix_spawn_file_actions_destroy(&actions);
    if (code != 0)
        return fail_errno(CHECKPOINTD_CUDA_HELPER, "cannot be started", code);
    return ours;
}

// False when the deadline passes.
Result<bool> receive(int fd, Answer& answer, Backend::Deadline deadline, const LooseThreads& tended = {}) {
    if (!wait_readable(fd, deadline, tended))
        return false;
    const ssize_t got = recv(fd, &answer, sizeof(answer), 0);
    if (got != sizeof(answer) || answer.version != kMessageVersion)
        return fail(ErrorKind::kSystem, kHelper, "ended in the middle of a call to the driver",
                    "see journalctl -u checkpointd-cuda");
    answer.text[sizeof(answer.text) - 1] = 0;
    return true;
}

}  // namespace

bool HelperBackend::answers(int fd, Deadline deadline) {
    const Request hello;
    Answer answer;
    if (send(fd, &hello, sizeof(hello), MSG_NOSIGNAL) != sizeof(hello))
        return false;
    auto got = receive(fd, answer, deadline);
    return got && *got;
}

// A connection is there before anybody has accepted it: while the system goes down, for one, nobody does any more.
Result<HelperBackend::Connection> HelperBackend::connect() {
    auto shared = connect_to_socket();
    if (shared && answers(shared->get(), std::chrono::steady_clock::now() + kGreetTime))
        return Connection{std::move(*shared), true};
    if (!shared && shared.error().errno_code != ENOENT && shared.error().errno_code != ECONNREFUSED)
        return tl::unexpected(std::move(shared).error());
    CKPT_ASSIGN(ScopedFd own, start_own());
    return Connection{std::move(own), false};
}

Result<std::unique_ptr<Backend>> HelperBackend::open() {
    CKPT_ASSIGN(Connection connection, connect());
    return std::unique_ptr<Backend>(new HelperBackend(std::move(connection)));
}

Result<Answer> HelperBackend::ask(const Request& request, Deadline deadline, int fd) {
    if (request.pid != 0)
        CKPT_TRY(wait_for_turn(kTurnFolder, request.pid, deadline, threads()));
    if (!connection_.fd) {
        CKPT_ASSIGN(connection_, connect());
    }
    if (send_descriptors(connection_.fd.get(), &request, sizeof(request), &fd, fd >= 0 ? 1 : 0, MSG_NOSIGNAL) !=
        sizeof(request)) {
        connection_.fd.reset();
        return fail_errno(kHelper, "cannot be asked");
    }
    Answer answer;
    auto got = receive(connection_.fd.get(), answer, deadline, threads());
    if (!got)
        connection_.fd.reset();
    CKPT_TRY(got);
    if (*got)
        return answer;
    late_.push_back(std::move(connection_.fd));
    return fail(ErrorKind::kTimeout, "CUDA driver", "does not answer in time");
}

bool HelperBackend::finish_late(Deadline deadline) {
    while (!late_.empty()) {
        Answer ignored;  // who asks wants the state, not what the call thought of it
        auto got = receive(late_.back().get(), ignored, deadline, threads());
        if (got && !*got)
            return false;
        late_.pop_back();
    }
    return true;
}

}  // namespace checkpointd::cuda
