// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/memory/page_images.h"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "images/constants.h"
#include "images/proto/memory.pb.h"

namespace checkpointd {
namespace {

constexpr uint64_t kWorthReserving = 1u << 20;

Result<void> write_entry(images::ImageWriter& pagemap, const PageSegment& segment) {
    images::pagemap_entry entry;
    entry.set_vaddr(segment.run.start);
    // Version 4 of the peer writes 0 here and counts in nr_pages alone.
    entry.set_compat_nr_pages(0);
    entry.set_nr_pages(segment.run.pages());
    uint32_t lazy = segment.lazy ? images::kPagesLazy : 0u;
    entry.set_flags(images::kPagesPresent | lazy);
    return pagemap.record(entry);
}

// Writing into blocks that are already reserved is a third cheaper on ext4 than having each reserved on
// its way (delayed allocation). tmpfs, also below overlayfs, would only touch its pages twice.
Result<void> make_room(int fd, uint64_t size, const std::string& name) {
    struct statfs fs {};
    bool gains = size >= kWorthReserving && fstatfs(fd, &fs) == 0 && fs.f_type == EXT4_SUPER_MAGIC;
    if (!gains || fallocate(fd, 0, 0, static_cast<off_t>(size)) == 0)
        return {};
    // Whatever else it says, such as EOPNOTSUPP, does not keep us from writing.
    if (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)
        return fail_errno(name, "cannot write pages");
    return {};
}

uint64_t size_of(const std::vector<PageRun>& runs) {
    uint64_t size = 0;
    for (const PageRun& run : runs)
        size += run.end - run.start;
    return size;
}

// Neighbours that are alike become one entry.
std::vector<PageSegment> joined(const std::vector<PageSegment>& segments) {
    std::vector<PageSegment> out;
    for (const PageSegment& segment : segments) {
        if (!out.empty() && out.back().run.end == segment.run.start &&
            out.back().lazy == segment.lazy)
            out.back().run.end = segment.run.end;
        else
            out.push_back(segment);
    }
    return out;
}

}  // namespace

Result<std::vector<PageRun>> data_runs(int fd, uint64_t size) {
    std::vector<PageRun> runs;
    auto end = static_cast<off_t>(size);
    for (off_t at = 0; at < end;) {
        off_t data = lseek(fd, at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            break;
        off_t hole = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);
        if (hole < 0)
            return fail_errno("shared memory", "cannot look for holes");
        auto start = static_cast<uint64_t>(data) & ~(kPageSize - 1);
        uint64_t stop = (std::min<uint64_t>(static_cast<uint64_t>(hole), size) + kPageSize - 1) &
                        ~(kPageSize - 1);
        if (start < stop)
            runs.push_back({start, stop});
        at = hole;
    }
    return runs;
}

Result<int> PageImages::start(images::ImageWriter& pagemap, std::string& name) {
    images::pagemap_head head;
    head.set_pages_id(++last_id_);
    CKPT_TRY(pagemap.record(head));
    CKPT_ASSIGN(ScopedFd file, dir_.create_raw(images::ImageType::kPages, last_id_));
    name = images::image_name(images::ImageType::kPages, last_id_);
    files_.push_back(std::move(file));
    return files_.back().get();
}

Result<void> PageImages::add_process(pid_t image_pid, const ProcessSource& source,
                                     const std::vector<PageSegment>& segments) {
    CKPT_ASSIGN(images::ImageWriter pagemap,
                dir_.create(images::ImageType::kPagemap, static_cast<uint64_t>(image_pid)));
    std::string name;
    CKPT_ASSIGN(int out, start(pagemap, name));
    uint64_t pages = 0;
    for (const PageSegment& segment : joined(segments)) {
        CKPT_TRY(write_entry(pagemap, segment));
        pages += segment.run.pages();
    }
    process_pages_ += pages;
    CKPT_TRY(make_room(out, pages * kPageSize, name));
    add_pages(source, segments, {out, name});
    return pagemap.finish();
}

// Stretches that come from the same place; most often that is all of it.
void PageImages::add_pages(const ProcessSource& source, const std::vector<PageSegment>& segments,
                           const Output& out) {
    auto later = [&](const PageSegment& segment) { return source.copy != 0 && segment.forks; };
    const PageSource now{source.pid, source.mem_fd, fmt::format("pid {}", source.pid)};
    const PageSource copy{source.copy, source.copy_mem_fd,
                          fmt::format("copy of pid {}", source.pid)};
    uint64_t offset = 0;
    for (auto next = segments.begin(); next != segments.end();) {
        const bool is_later = later(*next);
        std::vector<PageRun> runs;
        for (; next != segments.end() && later(*next) == is_later; ++next) {
            if (!runs.empty() && runs.back().end == next->run.start)
                runs.back().end = next->run.end;
            else
                runs.push_back(next->run);
        }
        PagePump& pump = is_later ? later_ : pump_;
        if (offset == 0 && next == segments.end())
            return pump.add(is_later ? copy : now, runs, out.fd, out.name);
        pump.add_part(is_later ? copy : now, runs, out.fd, out.name, offset);
        offset += size_of(runs);
    }
}

Result<void> PageImages::add_shared(uint64_t shmid, int fd, uint64_t size) {
    CKPT_ASSIGN(images::ImageWriter pagemap, dir_.create(images::ImageType::kPagemapShmem, shmid));
    std::string name;
    CKPT_ASSIGN(int out, start(pagemap, name));
    CKPT_ASSIGN(std::vector<PageRun> runs, data_runs(fd, size));
    for (const PageRun& run : runs) {
        CKPT_TRY(write_entry(pagemap, {run, false}));
        shared_pages_ += run.pages();
    }
    // A file that ends within its last page: the rest of that page reads as zeros.
    uint64_t whole = size & ~(kPageSize - 1);
    std::string tail;
    if (!runs.empty() && runs.back().end > size) {
        runs.back().end = whole;
        if (runs.back().start == whole)
            runs.pop_back();
        tail.resize(kPageSize);
        if (pread(fd, tail.data(), size - whole, static_cast<off_t>(whole)) < 0)
            return fail_errno(name, "cannot read the last page of shared memory");
    }
    CKPT_TRY(make_room(out, size_of(runs), name));
    pump_.add({0, fd, fmt::format("shared memory {}", shmid)}, runs, out, name);
    uint64_t offset = size_of(runs);
    if (tail.empty())
        return pagemap.finish();
    with_tail_.insert(name);
    if (pwrite(out, tail.data(), tail.size(), static_cast<off_t>(offset)) != ssize_t{kPageSize})
        return fail_errno(name, "cannot write pages");
    return pagemap.finish();
}

void PageImages::want_digests() {
    pump_.want_digests();
    later_.want_digests();
}

std::vector<images::FileDigest> PageImages::digests() const {
    auto known = pump_.digests();
    auto more = later_.digests();
    known.insert(known.end(), more.begin(), more.end());
    std::erase_if(known, [this](const images::FileDigest& file) { return with_tail_.contains(file.name); });
    return known;
}

Result<void> PageImages::run(Steps& steps, unsigned threads) {
    pump_.count_from(0, bytes());
    return pump_.run(steps, threads);
}

Result<void> PageImages::run_later(Steps& steps, unsigned threads) {
    later_.count_from(pump_.bytes(), bytes());
    return later_.run(steps, threads);
}

}  // namespace checkpointd
