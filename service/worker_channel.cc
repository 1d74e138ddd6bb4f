// SPDX-License-Identifier: LGPL-2.1-or-later
#include "service/worker_channel.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <fmt/core.h>

#include "core/base/io.h"

namespace checkpointd {
namespace {

Result<sockaddr_un> address_of(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof(address.sun_path))
        return fail(ErrorKind::kBadInput, path, "is too long for a socket's path");
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    return address;
}

const ucred* credentials_in(msghdr& header) {
    for (cmsghdr* part = CMSG_FIRSTHDR(&header); part; part = CMSG_NXTHDR(&header, part))
        if (part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_CREDENTIALS)
            return reinterpret_cast<const ucred*>(CMSG_DATA(part));
    return nullptr;
}

}  // namespace

Result<WorkerChannel> WorkerChannel::open(const std::string& path, Verify verify, Sink sink) {
    CKPT_ASSIGN(auto address, address_of(path));
    ScopedFd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!socket) return fail_errno(path, "cannot make a socket");
    const int on = 1;
    if (setsockopt(socket.get(), SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) < 0)
        return fail_errno(path, "cannot ask for credentials");
    unlink(path.c_str());
    if (bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) < 0)
        return fail_errno(path, "cannot bind");
    if (chmod(path.c_str(), 0600) < 0) return fail_errno(path, "cannot set the mode");
    return WorkerChannel(std::move(socket), std::move(verify), std::move(sink));
}

void WorkerChannel::receive() {
    while (receive_one()) {
    }
}

bool WorkerChannel::receive_one() {
    char buffer[8192];
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(ucred))];
    iovec part{buffer, sizeof(buffer)};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof(control);
    const ssize_t size = recvmsg(socket_.get(), &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (size < 0) return errno == EINTR;
    const ucred* sender = credentials_in(header);
    if (!sender || sender->uid != geteuid() || (header.msg_flags & MSG_TRUNC) != 0) return true;
    auto message = parse_progress(std::string(buffer, static_cast<size_t>(size)));
    if (message && is_known(sender->pid, message->job)) sink_(*message);
    return true;
}

// A worker's last words come when it is dead, and /proc knows nothing of it any more.
bool WorkerChannel::is_known(pid_t pid, uint32_t job) {
    if (auto known = known_.find(job); known != known_.end() && known->second == pid) return true;
    if (!verify_(pid, job)) return false;
    known_[job] = pid;
    return true;
}

ProgressSender::ProgressSender(std::string path)
    : socket_(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)),
      path_(std::move(path)) {}

void ProgressSender::send(const ProgressMessage& message) const {
    auto address = address_of(path_);
    if (!socket_ || !address) return;
    const std::string text = to_json(message);
    (void)sendto(socket_.get(), text.data(), text.size(), MSG_DONTWAIT | MSG_NOSIGNAL,
                 reinterpret_cast<const sockaddr*>(&*address), sizeof(*address));
}

std::string worker_unit_name(uint32_t job) { return fmt::format("checkpointd-job-{}.service", job); }

// A worker that died at its first step is gone before its words are read. Only root can have sent them
// (the socket's mode, and receive_one()), and root needs no such way to mislead us.
bool is_worker_of(pid_t pid, uint32_t job) {
    auto cgroup = read_file(AT_FDCWD, fmt::format("/proc/{}/cgroup", pid));
    if (!cgroup) return cgroup.error().errno_code == ENOENT || cgroup.error().errno_code == ESRCH;
    return cgroup->find("/" + worker_unit_name(job)) != std::string::npos;
}

}  // namespace checkpointd
