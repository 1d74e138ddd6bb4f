// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What only sock_diag(7) tells of an AF_UNIX socket: its peer, and who waits in its listen queue.
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

// A netlink socket that sees the sockets of the network namespace that `socket` belongs to, be it ours
// or not. Needs CAP_NET_ADMIN over that namespace.
Result<ScopedFd> open_sock_diag(int socket);
// The network namespace of a socket: inode number of its nsfs file.
Result<uint64_t> socket_namespace(int socket);

// The socket with this inode.
Result<UnixDiag> unix_diag(int diag, uint32_t ino);
// All listening sockets of the namespace.
Result<std::vector<UnixDiag>> unix_diag_listening(int diag);

// Parses one SOCK_DIAG_BY_FAMILY message (struct unix_diag_msg and attributes); nullopt if it is cut.
std::optional<UnixDiag> parse_unix_diag(const void* message, size_t size);

}  // namespace checkpointd
