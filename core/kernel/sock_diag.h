// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What only sock_diag(7) tells of a socket: of AF_UNIX its peer, and who waits in its listen queue; of
// AF_INET and AF_INET6 in which directions it was shut down.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"

namespace checkpointd {

struct UnixDiag {
    uint32_t ino = 0;
    uint32_t type = 0;   // SOCK_STREAM ...
    uint32_t state = 0;  // TCP_ESTABLISHED, TCP_LISTEN, TCP_CLOSE
    uint32_t peer = 0;   // the peer's inode; 0: none, or one that was not accepted yet
    std::string name;    // sun_path with its full length; empty where unbound
    uint8_t shutdown = 0;     // bit 0: cannot receive, bit 1: cannot send
    uint32_t read_queue = 0;  // bytes to read; listening: connections to accept
    uint32_t write_queue = 0;  // bytes that the peer has not read; listening: the backlog
    std::vector<uint32_t> waiting;  // listening: inodes of those who wait to be accepted, 0: closed
};

// Which socket is meant.
struct InetSocket {
    uint8_t family = 0;    // AF_INET, AF_INET6
    uint8_t protocol = 0;  // IPPROTO_UDP ...
    uint16_t port = 0;     // its own; one without is not listed
    uint32_t ino = 0;
};

struct InetDiag {
    uint32_t ino = 0;
    uint8_t shutdown = 0;  // as of UnixDiag
};

// A netlink socket that sees the sockets of the network namespace that `socket` belongs to, be it ours
// or not. Needs CAP_NET_ADMIN over that namespace.
Result<ScopedFd> open_sock_diag(int socket);
// The network namespace of a socket: inode number of its nsfs file.
Result<uint64_t> socket_namespace(int socket);

// The socket with this inode.
Result<UnixDiag> unix_diag(int diag, uint32_t ino);
// All listening sockets of the namespace.
Result<std::vector<UnixDiag>> unix_diag_listening(int diag);
// kNotFound where the kernel does not list it.
Result<InetDiag> inet_diag(int diag, const InetSocket& socket);

// Parse one SOCK_DIAG_BY_FAMILY message (a struct of its family, and attributes); nullopt if it is cut.
std::optional<UnixDiag> parse_unix_diag(const void* message, size_t size);
std::optional<InetDiag> parse_inet_diag(const void* message, size_t size);

}  // namespace checkpointd
