// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <deque>
#include <set>
#include <string>
#include <sys/types.h>
#include <vector>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "core/base/steps.h"
#include "core/kernel/page_scan.h"
#include "core/memory/page_pump.h"
#include "images/image_dir.h"

namespace checkpointd {

// Pages of a process, and whether they may be brought back after it runs again.
struct PageSegment {
    PageRun run;
    bool lazy = false;
    bool forks = false;  // a forked copy of the process has the same pages
};

// Where the pages of a process are read. Descriptors are borrowed.
struct ProcessSource {
    pid_t pid = 0;    // it stands still until run() has returned
    int mem_fd = -1;  // /proc/PID/mem
    pid_t copy = 0;   // forked off it, for run_later(); 0: there is none, run() takes all
    int copy_mem_fd = -1;
};

// Writes pagemap-*.img at once and remembers the pages; run() then moves them into pages-*.img, and
// run_later() those that copies hold.
class PageImages {
  public:
    // `dir` is borrowed.
    explicit PageImages(const images::ImageDir& dir) : dir_(dir) {}

    // pagemap-PID.img. Segments ascend.
    Result<void> add_process(pid_t image_pid, const ProcessSource& source,
                             const std::vector<PageSegment>& segments);
    // pagemap-shmem-SHMID.img: what a file of shared memory holds; holes are left out. `fd` is borrowed.
    Result<void> add_shared(uint64_t shmid, int fd, uint64_t size);
    Result<void> run(Steps& steps, unsigned threads = 0);
    Result<void> run_later(Steps& steps, unsigned threads = 0);
    // Of files that are about to be written, while their pages pass by. Not of all: what is not
    // worth it is left to the caller.
    void want_digests();
    std::vector<images::FileDigest> digests() const;

    uint64_t bytes() const { return pump_.bytes() + later_.bytes(); }
    uint64_t bytes_later() const { return later_.bytes(); }
    uint64_t process_pages() const { return process_pages_; }
    uint64_t shared_pages() const { return shared_pages_; }

  private:
    // A fresh pages file and the head that names it.
    Result<int> start(images::ImageWriter& pagemap, std::string& name);

    // Where the pages of one process go.
    struct Output {
        int fd;
        std::string name;
    };
    void add_pages(const ProcessSource& source, const std::vector<PageSegment>& segments,
                   const Output& out);

    const images::ImageDir& dir_;
    PagePump pump_;
    PagePump later_;
    std::deque<ScopedFd> files_;
    std::set<std::string> with_tail_;  // files that hold more than the pump has seen
    uint32_t last_id_ = 0;
    uint64_t process_pages_ = 0;
    uint64_t shared_pages_ = 0;
};

// Parts of [0, size) of a file that are not holes, widened to whole pages.
Result<std::vector<PageRun>> data_runs(int fd, uint64_t size);

}  // namespace checkpointd
