// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A process that holds another one's memory as it was: the kernel copies a page when the original
// writes to it.
#pragma once

#include <sys/types.h>
#include <string>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "core/inject/remote_syscalls.h"
#include "core/inject/seize.h"

namespace checkpointd {

// Stopped from birth, without descriptors, in a session of its own, a child of init; it runs no
// instruction of the program and sends it no signal. It ends when this is destroyed, or when we do.
// Memory that fork(2) does not copy (shared, MADV_DONTFORK, MADV_WIPEONFORK) is not in it.
class ForkedCopy {
  public:
    // The process stands still and is as before afterwards. Refused, with nothing left, where it
    // cannot have children that it never sees: errors of RemoteSyscalls::with_helper(), kSystem
    // where memory or processes run out. That neither it nor an ancestor is a child subreaper is
    // for the caller to know.
    static Result<ForkedCopy> make(SeizedProcess& process, const RemoteOptions& options = {});

    ForkedCopy(ForkedCopy&& other) noexcept;
    ForkedCopy& operator=(ForkedCopy&& other) noexcept;
    ~ForkedCopy();

    pid_t pid() const { return pid_; }
    // Its /proc/PID/mem.
    int mem_fd() const { return mem_.get(); }

  private:
    friend class CopyMaker;
    explicit ForkedCopy(pid_t pid) : pid_(pid) {}

    pid_t pid_;
    ScopedFd mem_;
};

}  // namespace checkpointd
