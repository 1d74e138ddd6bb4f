// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/kernel/page_scan.h"

#include <algorithm>
#include <fcntl.h>
#include <linux/ioctl.h>
#include <optional>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/base/io.h"

namespace checkpointd {
namespace {

// include/uapi/linux/fs.h of Linux 6.7; the headers of Debian 12 do not have it yet.
struct ScanRegion {
    uint64_t start;
    uint64_t end;
    uint64_t categories;
};
struct ScanArgument {
    uint64_t size;
    uint64_t flags;
    uint64_t start;
    uint64_t end;
    uint64_t walk_end;
    uint64_t vec;
    uint64_t vec_len;
    uint64_t max_pages;
    uint64_t category_inverted;
    uint64_t category_mask;
    uint64_t category_anyof_mask;
    uint64_t return_mask;
};
static_assert(sizeof(ScanArgument) == 96);
constexpr unsigned long kPagemapScan = _IOWR('f', 16, ScanArgument);
constexpr uint64_t kIsFile = 1 << 2;
constexpr uint64_t kIsPresent = 1 << 3;
constexpr uint64_t kIsSwapped = 1 << 4;
constexpr uint64_t kIsZero = 1 << 5;
constexpr uint64_t kIsGuard = 1 << 8;  // Linux 6.15

// Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
constexpr uint64_t kEntryPresent = uint64_t{1} << 63;
constexpr uint64_t kEntrySwapped = uint64_t{1} << 62;
constexpr uint64_t kEntryFile = uint64_t{1} << 61;
constexpr uint64_t kEntryGuard = uint64_t{1} << 58;  // Linux 6.15
constexpr uint64_t kEntryFrame = (uint64_t{1} << 55) - 1;

struct Wanted {
    uint64_t any_of;
    uint64_t none_of;
};

void append(std::vector<PageRun>& runs, uint64_t start, uint64_t end) {
    if (!runs.empty() && runs.back().end == start)
        runs.back().end = end;
    else
        runs.push_back({start, end});
}

int scan_once(int fd, ScanArgument& argument, ScanRegion* regions, size_t count) {
    argument.size = sizeof(argument);
    argument.vec = reinterpret_cast<uint64_t>(regions);
    argument.vec_len = count;
    return ioctl(fd, kPagemapScan, &argument);
}

Result<std::vector<PageRun>> scan(int fd, uint64_t start, uint64_t end, Wanted wanted) {
    ScanRegion regions[512];
    std::vector<PageRun> runs;
    while (start < end) {
        ScanArgument argument{};
        argument.start = start;
        argument.end = end;
        argument.category_inverted = wanted.none_of;
        argument.category_mask = wanted.none_of;
        argument.category_anyof_mask = wanted.any_of;
        argument.return_mask = wanted.any_of;
        int found = scan_once(fd, argument, regions, std::size(regions));
        if (found < 0)
            return fail_errno("/proc/PID/pagemap", fmt::format("cannot scan {:x}-{:x}", start, end));
        for (int i = 0; i < found; ++i)
            append(runs, regions[i].start, regions[i].end);
        start = argument.walk_end;
    }
    return runs;
}

// An empty range is a valid request; an unknown ioctl or category is not.
bool knows_category(int fd, uint64_t category) {
    alignas(kPageSize) static const char page[kPageSize] = {};
    ScanArgument argument{};
    argument.start = reinterpret_cast<uint64_t>(&page) & ~(kPageSize - 1);
    argument.end = argument.start + kPageSize;
    argument.category_mask = category;
    argument.return_mask = category;
    ScanRegion region;
    return scan_once(fd, argument, &region, 1) >= 0;
}

// The frame number of the kernel's zero page: what a page that was only read is mapped to.
uint64_t find_zero_frame() {
    void* page = mmap(nullptr, kPageSize, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return 0;
    (void)*static_cast<volatile const char*>(page);
    uint64_t entry = 0;
    ScopedFd fd(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
    auto offset = static_cast<off_t>(reinterpret_cast<uint64_t>(page) / kPageSize * sizeof(entry));
    if (!fd || pread(fd.get(), &entry, sizeof(entry), offset) != sizeof(entry))
        entry = 0;
    munmap(page, kPageSize);
    return entry & kEntryPresent ? entry & kEntryFrame : 0;
}

}  // namespace

Result<PageScanner> PageScanner::open(pid_t pid, ScanMethod method) {
    CKPT_ASSIGN(ScopedFd fd, open_at(AT_FDCWD, fmt::format("/proc/{}/pagemap", pid), O_RDONLY));
    // The probe asks about this process: the argument's range is checked before the target's.
    CKPT_ASSIGN(ScopedFd own, open_at(AT_FDCWD, "/proc/self/pagemap", O_RDONLY));
    bool has_ioctl = method != ScanMethod::kTable && knows_category(own.get(), kIsPresent);
    if (method == ScanMethod::kIoctl && !has_ioctl)
        return fail(ErrorKind::kUnsupported, "PAGEMAP_SCAN", "not known to this kernel");
    PageScanner scanner(std::move(fd), has_ioctl ? ScanMethod::kIoctl : ScanMethod::kTable);
    if (has_ioctl)
        scanner.guards_known_ = knows_category(own.get(), kIsGuard);
    else
        scanner.zero_frame_ = find_zero_frame();
    return scanner;
}

Result<std::vector<PageRun>> PageScanner::own_pages(uint64_t start, uint64_t end) const {
    if (method_ == ScanMethod::kTable)
        return by_table(start, end, false);
    uint64_t guard = guards_known_ ? kIsGuard : 0;
    return scan(fd_.get(), start, end, {kIsPresent | kIsSwapped, kIsFile | kIsZero | guard});
}

Result<std::vector<PageRun>> PageScanner::guard_pages(uint64_t start, uint64_t end) const {
    if (method_ == ScanMethod::kTable)
        return by_table(start, end, true);
    if (!guards_known_)
        return std::vector<PageRun>{};
    return scan(fd_.get(), start, end, {kIsGuard, 0});
}

Result<std::vector<PageRun>> PageScanner::by_table(uint64_t start, uint64_t end,
                                                   bool guards) const {
    std::vector<uint64_t> table(8192);
    std::vector<PageRun> runs;
    while (start < end) {
        size_t count = std::min<uint64_t>(table.size(), (end - start) / kPageSize);
        auto offset = static_cast<off_t>(start / kPageSize * sizeof(uint64_t));
        ssize_t n = pread(fd_.get(), table.data(), count * sizeof(uint64_t), offset);
        if (n <= 0)
            return fail_errno("/proc/PID/pagemap", fmt::format("cannot read at {:x}", start),
                              n < 0 ? errno : EIO);
        count = static_cast<size_t>(n) / sizeof(uint64_t);
        for (size_t i = 0; i < count; ++i, start += kPageSize) {
            uint64_t entry = table[i];
            bool zero = zero_frame_ && (entry & kEntryPresent) && (entry & kEntryFrame) == zero_frame_;
            bool own = (entry & (kEntryPresent | kEntrySwapped)) && !(entry & kEntryFile) && !zero;
            bool guard = entry & kEntryGuard;
            if (guards ? guard : own && !guard)
                append(runs, start, start + kPageSize);
        }
    }
    return runs;
}

}  // namespace checkpointd
