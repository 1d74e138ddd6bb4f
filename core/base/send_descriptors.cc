// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/base/send_descriptors.h"

#include <cerrno>
#include <cstring>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace checkpointd {

ssize_t send_descriptors(int socket, const void* data, size_t size, const int* fds, size_t count, int flags) {
    if (count > kMostDescriptorsSent) {
        errno = EINVAL;
        return -1;
    }
    alignas(cmsghdr) char control[CMSG_SPACE(kMostDescriptorsSent * sizeof(int))];
    iovec bytes{const_cast<void*>(data), size};
    msghdr message{};
    message.msg_iov = &bytes;
    message.msg_iovlen = 1;
    if (count > 0) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        cmsghdr* part = CMSG_FIRSTHDR(&message);
        part->cmsg_level = SOL_SOCKET;
        part->cmsg_type = SCM_RIGHTS;
        part->cmsg_len = CMSG_LEN(count * sizeof(int));
        std::memcpy(CMSG_DATA(part), fds, count * sizeof(int));
    }
    return syscall(SYS_sendmsg, socket, &message, flags);
}

}  // namespace checkpointd
