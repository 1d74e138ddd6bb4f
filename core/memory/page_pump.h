// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Moves pages from where they are into files, with as many threads as pay off.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/steps.h"
#include "core/kernel/page_scan.h"
#include "images/manifest.h"

namespace checkpointd {

// Where pages come from.
struct PageSource {
    pid_t pid = 0;   // a stopped process: process_vm_readv(2), which gives 3 GB/s
    int fd = -1;     // with a pid: its /proc/PID/mem, for what may not be read (PROT_NONE);
                     // without: the file itself (shared memory), addresses are offsets in it
    std::string object;  // for errors
};

// Collects what has to be moved, then moves all of it at once. Descriptors are borrowed until run() has
// returned. Not thread-safe; run() makes its own threads and ends them.
class PagePump {
  public:
    // Pages of `runs`, one after the other, are all that the file `out_fd` is to hold.
    void add(const PageSource& source, const std::vector<PageRun>& runs, int out_fd,
             const std::string& out_object);
    // They are a part of the file, from `out_offset` on. Such a file has no digests.
    void add_part(const PageSource& source, const std::vector<PageRun>& runs, int out_fd,
                  const std::string& out_object, uint64_t out_offset);
    // Of all files, with their objects as names, while their pages pass by. To be asked for before run().
    void want_digests() { wants_digests_ = true; }
    std::vector<images::FileDigest> digests() const;
    uint64_t bytes() const { return bytes_; }
    // Progress counts on from there: others have moved `done` bytes of `total`, or will.
    void count_from(uint64_t done, uint64_t total) { counted_ = {done, total}; }
    // `threads` 0: one for little, two for much (a third gains nothing: the file's lock is the limit).
    // Progress goes to steps.moved(); steps.enter() is not called.
    Result<void> run(Steps& steps, unsigned threads = 0);

  private:
    friend class PumpRun;
    // 256 KiB: larger ones fall out of the cache between read and write, three times slower at 4 MiB.
    static constexpr size_t kChunkSize = 256u << 10;

    struct Target {
        int fd;
        std::string object;
        bool whole;  // all of the file comes from here
        uint64_t begin;
    };
    struct Counted {
        uint64_t done;
        uint64_t total;
    };
    struct Chunk {
        uint32_t source;
        uint64_t first_range;
        uint32_t ranges;
        uint32_t size;
        uint64_t out_offset;
    };
    // Chunks that one thread moves: those of one digest.
    struct Batch {
        uint32_t target;
        size_t first_chunk;
        size_t chunks;
        uint64_t digest;
    };
    static_assert(images::kDigestChunk % kChunkSize == 0);
    void start_chunk(uint64_t out_offset);
    void add_runs(const PageSource& source, const std::vector<PageRun>& runs, Target target);

    std::vector<PageSource> sources_;
    std::vector<Target> targets_;
    std::vector<iovec> ranges_;
    std::vector<Chunk> chunks_;
    std::vector<Batch> batches_;
    uint64_t bytes_ = 0;
    bool wants_digests_ = false;
    std::optional<Counted> counted_;
};

}  // namespace checkpointd
