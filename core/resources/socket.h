// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What sockets of all families share: their options, how options are set by a plan, and keys of sockets
// that the caller of a restore gives.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <sys/socket.h>

#include "core/base/error.h"
#include "core/resources/kind.h"
#include "images/proto/common.pb.h"
#include "images/proto/sockets.pb.h"

namespace checkpointd {

// "socket:[INO]", as /proc/PID/fd names it.
std::string socket_key(uint64_t ino);

// The address family of a socket; -1 for anything else.
int socket_family(const OpenFile& file);

// getsockopt of one plain value.
template <typename T>
Result<T> socket_option(int socket, int level, int option, const std::string& object) {
    T value{};
    socklen_t size = sizeof(value);
    if (getsockopt(socket, level, option, &value, &size) != 0)
        return fail_errno(object, fmt::format("cannot read socket option {}/{}", level, option));
    return value;
}

// Reads all common options.
Result<void> dump_socket_options(const OpenFile& file, int family, images::sk_opts_entry& options);

// Emits setsockopt of an int.
void plan_option(Program& program, Plan& plan, std::string_view label, Slot socket, int level,
                 int option, int value);
// Emits all common options but SO_REUSEADDR and SO_REUSEPORT, which matter when the socket is bound.
void plan_socket_options(Program& program, Plan& plan, std::string_view label, Slot socket,
                         const images::sk_opts_entry& options);
// SHUT_* of an image's record, or -1 for none.
int shutdown_how(images::sk_shutdown shutdown);

// The caller's socket for this inode. Emits its file flags; nothing where the caller has none.
std::optional<Slot> plan_external_socket(FilePlanContext& context, std::string_view label,
                                         uint32_t file_id, uint32_t ino, uint32_t flags,
                                         const images::fown_entry& owner);

// A blocker where a socket lives in another network namespace than its task.
Result<void> check_socket_namespace(const OpenFile& file, FileDumpContext& context);

}  // namespace checkpointd
