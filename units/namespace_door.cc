// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/namespace_door.h"

#include <cerrno>
#include <linux/close_range.h>
#include <poll.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <utility>

#include "core/base/pipe.h"
#include "units/sibling.h"
#include "units/unit_process.h"

namespace checkpointd {
namespace {

struct DoorPlan {
    int placeholder = -1;  // pidfd
    int namespaces = 0;
    int user_namespace = -1;
    int report = -1;
    int gate = -1;
};

// An open descriptor of ours would keep others waiting, for a lock or for an end of file, when we are long dead.
[[noreturn]] void stand_in_it(void* context) {
    const DoorPlan& plan = *static_cast<const DoorPlan*>(context);
    // It holds our memory: nobody of the unit's user namespace may look at it (ptrace(2), __ptrace_may_access()).
    prctl(PR_SET_DUMPABLE, 0);
    // In this order: those that belong to the machine's user namespace cannot be joined from the unit's.
    const bool inside = (plan.namespaces == 0 || setns(plan.placeholder, plan.namespaces) == 0) &&
                        setns(plan.user_namespace, CLONE_NEWUSER) == 0;
    const int error = inside ? 0 : errno;
    const bool told = write(plan.report, &error, sizeof(error)) == sizeof(error);
    if (!inside || !told || dup2(plan.gate, 0) != 0 || syscall(SYS_close_range, 1, ~0u, 0) != 0)
        _exit(1);
    char byte;
    (void)!read(0, &byte, 1);
    _exit(0);
}

Result<void> wait_inside(int report, Deadline deadline) {
    CKPT_TRY(poll_until(deadline, "namespaces of the unit", "cannot be entered in time", [&]() -> Result<bool> {
        pollfd ready = {report, POLLIN, 0};
        return poll(&ready, 1, 0) == 1;
    }));
    int error = 0;
    if (read(report, &error, sizeof(error)) != sizeof(error))
        return fail(ErrorKind::kGone, "namespaces of the unit", "the process that enters them has died");
    if (error != 0)
        return fail_errno("namespaces of the unit", "cannot enter them", error);
    return {};
}

}  // namespace

Result<std::optional<NamespaceDoor>> NamespaceDoor::open(const Placeholder& placeholder, Deadline deadline) {
    CKPT_ASSIGN(auto user_namespace, placeholder.user_namespace());
    if (!user_namespace)
        return std::nullopt;
    CKPT_ASSIGN(Pipe gate, make_pipe("namespaces of the unit"));
    CKPT_ASSIGN(Pipe report, make_pipe("namespaces of the unit"));
    DoorPlan plan{placeholder.pidfd(), differing_namespaces(placeholder.pid()), user_namespace->get(),
                  report.write_end.get(), gate.read_end.get()};
    NamespaceDoor door;
    CKPT_ASSIGN(door.pid_, fork_sibling(-1, stand_in_it, &plan, "namespaces of the unit"));
    door.gate_ = std::move(gate.write_end);
    CKPT_ASSIGN(door.pidfd_, open_pidfd(door.pid_));
    report.write_end.reset();
    CKPT_TRY(wait_inside(report.read_end.get(), deadline));
    return door;
}

}  // namespace checkpointd
