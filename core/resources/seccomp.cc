// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/resources/seccomp.h"

#include <linux/seccomp.h>

namespace checkpointd {

uint32_t SeccompCollector::add(int64_t previous, uint64_t flags, std::string code) {
    Key key{previous, fmt::format("{}:", flags) + code};
    auto found = known_.find(key);
    if (found != known_.end())
        return found->second;
    auto index = static_cast<uint32_t>(image_.seccomp_filters_size());
    images::seccomp_filter& filter = *image_.add_seccomp_filters();
    filter.set_filter(std::move(code));
    filter.set_flags(static_cast<uint32_t>(flags));
    if (previous >= 0)
        filter.set_prev(static_cast<uint32_t>(previous));
    known_.emplace(std::move(key), index);
    return index;
}

Result<void> SeccompCollector::dump(const SeizedThread& thread, images::thread_core_entry& out) {
    CKPT_ASSIGN(int mode, thread.seccomp_mode());
    if (mode == SECCOMP_MODE_DISABLED)
        return {};
    out.set_seccomp_mode(static_cast<images::seccomp_mode>(mode));
    if (mode != SECCOMP_MODE_FILTER)
        return {};
    CKPT_ASSIGN(auto filters, thread.seccomp_filters());
    int64_t previous = -1;
    for (size_t i = 0; i < filters.size(); ++i) {
        auto age = static_cast<unsigned>(filters.size() - 1 - i);  // ptrace counts the youngest as 0
        CKPT_ASSIGN(uint64_t flags, ptrace_get_seccomp_flags(thread.tid(), age));
        std::string code(reinterpret_cast<const char*>(filters[i].data()),
                         filters[i].size() * sizeof(sock_filter));
        previous = add(previous, flags, std::move(code));
    }
    if (previous >= 0)
        out.set_seccomp_filter(static_cast<uint32_t>(previous));
    return {};
}

}  // namespace checkpointd
