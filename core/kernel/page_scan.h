// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Which pages of a process exist, by PAGEMAP_SCAN (Linux 6.7) or by the table /proc/PID/pagemap.
#pragma once

#include <cstdint>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"

namespace checkpointd {

inline constexpr uint64_t kPageSize = 4096;

// Consecutive pages, by addresses.
struct PageRun {
    uint64_t start = 0;
    uint64_t end = 0;
    uint64_t pages() const { return (end - start) / kPageSize; }
    bool operator==(const PageRun&) const = default;
};

enum class ScanMethod {
    kProbe,  // the ioctl where the kernel has it
    kIoctl,
    kTable,
};

// Reads the page tables of one process. Needs ptrace access to it; telling the zero page apart by the
// table needs CAP_SYS_ADMIN as well (without, zero pages count as pages with content).
class PageScanner {
  public:
    static Result<PageScanner> open(pid_t pid, ScanMethod method = ScanMethod::kProbe);

    // Pages of [start, end) whose content is the process's own: in memory or swapped out, neither file
    // cache nor the shared zero page.
    Result<std::vector<PageRun>> own_pages(uint64_t start, uint64_t end) const;
    // Pages of [start, end) that MADV_GUARD_INSTALL (Linux 6.13) made inaccessible. Empty where the
    // kernel cannot tell.
    Result<std::vector<PageRun>> guard_pages(uint64_t start, uint64_t end) const;
    ScanMethod method() const { return method_; }

  private:
    PageScanner(ScopedFd fd, ScanMethod method) : fd_(std::move(fd)), method_(method) {}
    Result<std::vector<PageRun>> by_table(uint64_t start, uint64_t end, bool guards) const;

    ScopedFd fd_;
    ScanMethod method_;
    bool guards_known_ = false;
    uint64_t zero_frame_ = 0;  // 0: not known
};

}  // namespace checkpointd
