// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/kernel/sock_diag.h"

#include <arpa/inet.h>
#include <array>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <functional>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/sockios.h>
#include <linux/unix_diag.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

#include "core/base/io.h"

namespace checkpointd {

namespace {

constexpr uint32_t kAll = UDIAG_SHOW_NAME | UDIAG_SHOW_VFS | UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS |
                          UDIAG_SHOW_RQLEN;

template <typename Body>
struct Request {
    nlmsghdr header;
    Body body;
};

Result<ScopedFd> namespace_of(int socket) {
    ScopedFd ns(ioctl(socket, SIOCGSKNS));
    if (!ns)
        return fail_errno("socket", "cannot tell its network namespace (SIOCGSKNS)");
    return ns;
}

Result<uint64_t> inode_of(int fd) {
    struct stat about {};
    if (fstat(fd, &about) != 0)
        return fail_errno("network namespace", "cannot stat");
    return about.st_ino;
}

Result<ScopedFd> new_diag_socket() {
    ScopedFd diag(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG));
    if (!diag)
        return fail_errno("sock_diag", "cannot open a netlink socket");
    return diag;
}

// A socket stays in the namespace in which it was made, and a thread may change its own network
// namespace alone (setns(2)); so a short-lived thread makes it there.
Result<ScopedFd> diag_socket_in(int ns) {
    Result<ScopedFd> result = fail(ErrorKind::kInternal, "sock_diag", "no result");
    std::jthread([&] {
        if (setns(ns, CLONE_NEWNET) != 0)
            result = fail_errno("sock_diag", "cannot enter the socket's network namespace");
        else
            result = new_diag_socket();
    }).join();
    return result;
}

template <typename Body>
Result<void> send_request(int diag, const Body& body, uint16_t flags) {
    Request<Body> request{};
    request.header.nlmsg_len = sizeof(request);
    request.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
    request.header.nlmsg_flags = static_cast<uint16_t>(NLM_F_REQUEST | flags);
    request.body = body;
    if (send(diag, &request, sizeof(request), 0) != sizeof(request))
        return fail_errno("sock_diag", "cannot ask");
    return {};
}

unix_diag_req unix_request(uint32_t ino, uint32_t states) {
    unix_diag_req body{};
    body.sdiag_family = AF_UNIX;
    body.udiag_states = states;
    body.udiag_ino = ino;
    body.udiag_show = kAll;
    body.udiag_cookie[0] = body.udiag_cookie[1] = UINT32_MAX;  // any
    return body;
}

// Gets the message of one socket: a fixed head of its family, and attributes.
using MessageHandler = std::function<void(const void* message, size_t size)>;

// Handles one datagram of answers; true when it was the last.
Result<bool> handle_answers(const char* data, size_t size, const MessageHandler& handle) {
    auto left = static_cast<int>(size);
    auto* header = reinterpret_cast<const nlmsghdr*>(data);
    bool dump = false;
    for (; NLMSG_OK(header, static_cast<unsigned>(left)); header = NLMSG_NEXT(header, left)) {
        dump = dump || (header->nlmsg_flags & NLM_F_MULTI) != 0;
        if (header->nlmsg_type == NLMSG_DONE)
            return true;
        if (header->nlmsg_type == NLMSG_ERROR) {
            auto* error = static_cast<const nlmsgerr*>(NLMSG_DATA(header));
            if (error->error != 0)
                return fail_errno("sock_diag", "the kernel refused", -error->error);
            continue;
        }
        handle(NLMSG_DATA(header), NLMSG_PAYLOAD(header, 0));
    }
    return !dump;
}

Result<void> receive_answers(int diag, const MessageHandler& handle) {
    std::vector<char> buffer(64 << 10);
    while (true) {
        ssize_t got = recv(diag, buffer.data(), buffer.size(), 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return fail_errno("sock_diag", "no answer", got < 0 ? errno : EPIPE);
        CKPT_ASSIGN(bool last, handle_answers(buffer.data(), static_cast<size_t>(got), handle));
        if (last)
            return {};
    }
}

void take_attribute(UnixDiag& diag, uint16_t type, const char* data, size_t size) {
    auto word = [&](size_t index) {
        uint32_t value = 0;
        if (size >= 4 * (index + 1))
            std::memcpy(&value, data + 4 * index, 4);
        return value;
    };
    switch (type) {
        case UNIX_DIAG_NAME: diag.name.assign(data, size); break;
        case UNIX_DIAG_PEER: diag.peer = word(0); break;
        case UNIX_DIAG_SHUTDOWN: diag.shutdown = size > 0 ? static_cast<uint8_t>(data[0]) : 0; break;
        case UNIX_DIAG_RQLEN:
            diag.read_queue = word(0);
            diag.write_queue = word(1);
            break;
        case UNIX_DIAG_ICONS:
            for (size_t i = 0; i < size / 4; ++i)
                diag.waiting.push_back(word(i));
            break;
        default: break;
    }
}

// Calls `take` with each attribute from `at` on; false if one is cut.
bool walk_attributes(const void* message, size_t size, size_t at,
                     const std::function<void(uint16_t, const char*, size_t)>& take) {
    const char* data = static_cast<const char*>(message);
    while (at + sizeof(rtattr) <= size) {
        rtattr attribute{};
        std::memcpy(&attribute, data + at, sizeof(attribute));
        if (attribute.rta_len < sizeof(rtattr) || attribute.rta_len > size - at)
            return false;
        take(attribute.rta_type, data + at + RTA_LENGTH(0), attribute.rta_len - RTA_LENGTH(0));
        at += RTA_ALIGN(attribute.rta_len);
    }
    return true;
}

}  // namespace

std::optional<UnixDiag> parse_unix_diag(const void* message, size_t size) {
    if (size < sizeof(unix_diag_msg))
        return std::nullopt;
    unix_diag_msg head{};
    std::memcpy(&head, message, sizeof(head));
    UnixDiag diag;
    diag.ino = head.udiag_ino;
    diag.type = head.udiag_type;
    diag.state = head.udiag_state;
    auto take = [&](uint16_t type, const char* data, size_t length) {
        take_attribute(diag, type, data, length);
    };
    if (!walk_attributes(message, size, NLMSG_ALIGN(sizeof(head)), take))
        return std::nullopt;
    return diag;
}

std::optional<InetDiag> parse_inet_diag(const void* message, size_t size) {
    if (size < sizeof(inet_diag_msg))
        return std::nullopt;
    inet_diag_msg head{};
    std::memcpy(&head, message, sizeof(head));
    InetDiag diag;
    diag.ino = head.idiag_inode;
    auto take = [&](uint16_t type, const char* data, size_t length) {
        if (type == INET_DIAG_SHUTDOWN && length > 0)
            diag.shutdown = static_cast<uint8_t>(data[0]);
    };
    if (!walk_attributes(message, size, NLMSG_ALIGN(sizeof(head)), take))
        return std::nullopt;
    return diag;
}

Result<uint64_t> socket_namespace(int socket) {
    CKPT_ASSIGN(ScopedFd ns, namespace_of(socket));
    return inode_of(ns.get());
}

Result<ScopedFd> open_sock_diag(int socket) {
    CKPT_ASSIGN(ScopedFd theirs, namespace_of(socket));
    CKPT_ASSIGN(ScopedFd ours, open_at(AT_FDCWD, "/proc/thread-self/ns/net", O_RDONLY));
    CKPT_ASSIGN(uint64_t their_ino, inode_of(theirs.get()));
    CKPT_ASSIGN(uint64_t our_ino, inode_of(ours.get()));
    return their_ino == our_ino ? new_diag_socket() : diag_socket_in(theirs.get());
}

Result<UnixDiag> unix_diag(int diag, uint32_t ino) {
    CKPT_TRY(send_request(diag, unix_request(ino, UINT32_MAX), 0));
    std::optional<UnixDiag> found;
    CKPT_TRY(receive_answers(diag, [&](const void* message, size_t size) {
        if (auto one = parse_unix_diag(message, size))
            found = std::move(*one);
    }));
    if (!found)
        return fail(ErrorKind::kNotFound, "sock_diag", fmt::format("no unix socket {}", ino));
    return std::move(*found);
}

Result<std::vector<UnixDiag>> unix_diag_listening(int diag) {
    CKPT_TRY(send_request(diag, unix_request(0, 1u << TCP_LISTEN), NLM_F_DUMP));
    std::vector<UnixDiag> all;
    CKPT_TRY(receive_answers(diag, [&](const void* message, size_t size) {
        if (auto one = parse_unix_diag(message, size))
            all.push_back(std::move(*one));
    }));
    return all;
}

// By address the kernel finds the socket that would receive, which need not be ours; so all with our port
// are listed.
Result<InetDiag> inet_diag(int diag, const InetSocket& socket) {
    inet_diag_req_v2 body{};
    body.sdiag_family = socket.family;
    body.sdiag_protocol = socket.protocol;
    body.idiag_states = UINT32_MAX;
    body.id.idiag_sport = htons(socket.port);
    CKPT_TRY(send_request(diag, body, NLM_F_DUMP));
    std::optional<InetDiag> found;
    CKPT_TRY(receive_answers(diag, [&](const void* message, size_t size) {
        if (auto one = parse_inet_diag(message, size); one && one->ino == socket.ino)
            found = *one;
    }));
    if (!found)
        return fail(ErrorKind::kNotFound, "sock_diag", fmt::format("no inet socket {}", socket.ino));
    return *found;
}

}  // namespace checkpointd
