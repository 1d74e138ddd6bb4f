// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Keeps the PIDs of a stopped unit from others while it is off. The unit
// checkpointd-pids@IMAGE.service holds each number by a dead child (units/placeholder/holder.c)
// until the image is restored or removed, or the machine is rebooted; then the PID floor does the
// same.
#pragma once

#include <sys/types.h>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/transaction/journal.h"
#include "units/systemd.h"

namespace checkpointd {

// All numbers that living processes use, ascending, as their own PID namespace has them: theirs, those of their
// threads, and of groups and sessions whose leader is dead; a living leader outside of them keeps its own.
std::vector<pid_t> numbers_of(const std::vector<pid_t>& pids);

// `image` is "UNIT/ID". The numbers of processes that ended just now may take a moment; those that
// others have are no error.
Result<void> reserve_numbers(Systemd& systemd, const std::string& image,
                             const std::vector<pid_t>& numbers, Deadline deadline);
bool has_reservation(const std::string& image);
// The numbers can be had when this returns; nothing reserved is fine. reserve_again() takes them
// back.
Result<void> give_back_numbers(Systemd& systemd, const std::string& image, Deadline deadline);
Result<void> reserve_again(Systemd& systemd, const std::string& image, Deadline deadline);
// Nobody will need them any more.
Result<void> end_reservation(Systemd& systemd, const std::string& image);

// "checkpointd-pids@a.service\x2d1.service" of "a.service-1": as systemd-escape(1) makes it.
std::string reservation_unit(std::string_view image);

}  // namespace checkpointd
