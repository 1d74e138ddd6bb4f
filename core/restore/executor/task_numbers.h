// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstddef>
#include <map>
#include <sys/types.h>
#include <vector>

namespace checkpointd {

// The numbers of threads as we see them and as the image has them. They are the same unless the tasks are born
// in a PID namespace of their own (RestoreRequest::in_pid_namespace): then only the inner ones are chosen.
class TaskNumbers {
  public:
    explicit TaskNumbers(bool differ);

    bool differ() const { return differ_; }
    // Of a thread that is there; one that is dead is, until it has been reaped.
    void learn(pid_t outer);
    // 0: it is not in the namespace.
    pid_t inner(pid_t outer) const;
    // 0: nobody with that number was seen.
    pid_t outer(pid_t inner) const;

  private:
    bool differ_;
    size_t depth_ = 1;  // of our own namespace, below that of /proc
    std::map<pid_t, pid_t> inner_;
    std::map<pid_t, pid_t> outer_;
};

// All threads on this machine that the calling thread traces.
std::vector<pid_t> find_tracees();
bool is_traced_by_us(pid_t id);

}  // namespace checkpointd
