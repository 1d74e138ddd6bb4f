// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What a task's seccomp filters would say to a system call, without making it.
#pragma once

#include <cstdint>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <vector>

#include "core/base/error.h"

namespace checkpointd {

using SeccompFilter = std::vector<sock_filter>;

// Runs one filter (classic BPF as kernel/seccomp.c admits it) and returns SECCOMP_RET_*. kBadInput where the
// program is none that the kernel would have accepted.
Result<uint32_t> run_seccomp_filter(const SeccompFilter& filter, const seccomp_data& data);

// The verdict of all filters together: the strictest wins. A program that cannot be run counts as killing.
uint32_t seccomp_verdict(const std::vector<SeccompFilter>& filters, const seccomp_data& data);

// The call is made as if there were no filter.
bool seccomp_allows(const std::vector<SeccompFilter>& filters, const seccomp_data& data);

}  // namespace checkpointd
