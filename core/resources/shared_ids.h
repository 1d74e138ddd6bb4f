// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"

namespace checkpointd {

// kcmp(2): 0 equal, 1 first is less, 2 first is greater, in an order of the kernel's own.
Result<int> kcmp_order(pid_t first, pid_t second, int type, uint64_t index1, uint64_t index2);

// Kernel objects of one kind, sorted as kcmp orders them: finding one among n takes log n calls.
class KernelOrder {
  public:
    explicit KernelOrder(int kcmp_type) : type_(kcmp_type) {}
    // The id under which the object is known, or `fresh_id`, which it then has.
    Result<uint32_t> id_of(pid_t pid, uint64_t index, uint32_t fresh_id, bool* is_new);

  private:
    struct Member {
        pid_t pid;
        uint64_t index;
        uint32_t id;
    };
    Result<size_t> find(pid_t pid, uint64_t index, bool* found) const;

    int type_;
    std::vector<Member> members_;
};

// Numbers what tasks may share (KCMP_VM, KCMP_FILES, KCMP_FS, KCMP_SIGHAND), from 1.
class SharedIds {
  public:
    explicit SharedIds(int kcmp_type) : order_(kcmp_type) {}
    // The id of the task's object; `is_new` tells that no earlier task had it.
    Result<uint32_t> of(pid_t pid, bool* is_new = nullptr);

  private:
    KernelOrder order_;
    uint32_t next_ = 1;
};

}  // namespace checkpointd
