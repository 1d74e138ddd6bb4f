// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/memory/page_pump.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <memory>
#include <mutex>
#include <optional>
#include <pthread.h>
#include <span>
#include <system_error>
#include <thread>
#include <unistd.h>

namespace checkpointd {
namespace {

constexpr uint64_t kWorthAThread = 8u << 20;

// Reads ranges of a file by their offsets.
Result<void> read_ranges(const PageSource& source, std::span<const iovec> ranges, size_t skip,
                         char* into) {
    for (const iovec& range : ranges) {
        size_t done = std::min(skip, range.iov_len);
        skip -= done;
        while (done < range.iov_len) {
            auto offset = static_cast<off_t>(reinterpret_cast<uint64_t>(range.iov_base) + done);
            ssize_t n = pread(source.fd, into + done, range.iov_len - done, offset);
            if (n < 0 && errno == EINTR)
                continue;
            if (n <= 0)
                return fail_errno(source.object, fmt::format("cannot read memory at {:x}", offset),
                                  n < 0 ? errno : ENODATA);
            done += static_cast<size_t>(n);
        }
        into += range.iov_len;
    }
    return {};
}

Result<void> read_chunk(const PageSource& source, std::span<const iovec> ranges, size_t size,
                        char* into) {
    if (source.pid == 0)
        return read_ranges(source, ranges, 0, into);
    iovec local{into, size};
    ssize_t n = process_vm_readv(source.pid, &local, 1, ranges.data(), ranges.size(), 0);
    if (n == static_cast<ssize_t>(size))
        return {};
    if (n < 0 && errno != EFAULT)
        return fail_errno(source.object, "cannot read its memory");
    // It stops at the first page that may not be read, such as one under PROT_NONE.
    return read_ranges(source, ranges, n < 0 ? 0 : static_cast<size_t>(n), into);
}

Result<void> write_at(int fd, const char* data, size_t size, uint64_t offset,
                      const std::string& object) {
    while (size > 0) {
        ssize_t n = pwrite(fd, data, size, static_cast<off_t>(offset));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail_errno(object, "cannot write pages");
        data += n;
        size -= static_cast<size_t>(n);
        offset += static_cast<uint64_t>(n);
    }
    return {};
}

// Threads start with the mask of their maker: signals stay with the caller's own threads.
class BlockSignals {
  public:
    BlockSignals() {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old_);
    }
    ~BlockSignals() { pthread_sigmask(SIG_SETMASK, &old_, nullptr); }

  private:
    sigset_t old_;
};

}  // namespace

// One run of the pump: batches are handed out one by one until all are done or one has failed.
class PumpRun {
  public:
    PumpRun(PagePump& pump, Steps& steps) : pump_(pump), steps_(steps) {}

    void work() {
        auto buffer = std::make_unique<char[]>(PagePump::kChunkSize);
        while (!failed_) {
            size_t index = next_++;
            if (index >= pump_.batches_.size())
                return;
            auto moved = move(pump_.batches_[index], buffer.get());
            if (!moved)
                return give_up(std::move(moved).error());
        }
    }

    Result<void> outcome() {
        if (error_)
            return tl::unexpected(std::move(*error_));
        return {};
    }

  private:
    Result<void> move(PagePump::Batch& batch, char* buffer) {
        const auto& target = pump_.targets_[batch.target];
        images::ChunkDigest digest;
        for (const auto& chunk : std::span(pump_.chunks_).subspan(batch.first_chunk, batch.chunks)) {
            if (failed_)
                return {};
            std::span ranges(pump_.ranges_.data() + chunk.first_range, chunk.ranges);
            CKPT_TRY(read_chunk(pump_.sources_[chunk.source], ranges, chunk.size, buffer));
            CKPT_TRY(write_at(target.fd, buffer, chunk.size, chunk.out_offset, target.object));
            if (pump_.wants_digests_)
                digest.add(buffer, chunk.size);
            report(chunk.size);
        }
        batch.digest = digest.value();
        return {};
    }

    void give_up(Error error) {
        std::lock_guard guard(lock_);
        if (!error_)
            error_ = std::move(error);
        failed_ = true;
    }

    // Steps::moved() must not be called more than every few milliseconds.
    void report(uint64_t size) {
        uint64_t done = done_ += size;
        auto now = std::chrono::steady_clock::now().time_since_epoch().count();
        auto last = reported_.load();
        bool due = now - last > 5'000'000 || done == pump_.bytes_;
        if (due && reported_.compare_exchange_strong(last, now))
            tell(done);
    }

    void tell(uint64_t done) {
        if (pump_.counted_)
            steps_.moved(pump_.counted_->done + done, pump_.counted_->total);
        else
            steps_.moved(done, pump_.bytes_);
    }

    PagePump& pump_;
    Steps& steps_;
    std::atomic<size_t> next_ = 0;
    std::atomic<uint64_t> done_ = 0;
    std::atomic<int64_t> reported_ = 0;
    std::atomic<bool> failed_ = false;
    std::mutex lock_;
    std::optional<Error> error_;
};

void PagePump::start_chunk(uint64_t out_offset) {
    if ((out_offset - targets_.back().begin) % images::kDigestChunk == 0)
        batches_.push_back({static_cast<uint32_t>(targets_.size() - 1), chunks_.size(), 0, 0});
    ++batches_.back().chunks;
    chunks_.push_back({static_cast<uint32_t>(sources_.size() - 1), ranges_.size(), 0, 0, out_offset});
}

void PagePump::add(const PageSource& source, const std::vector<PageRun>& runs, int out_fd,
                   const std::string& out_object) {
    add_runs(source, runs, {out_fd, out_object, true, 0});
}

void PagePump::add_part(const PageSource& source, const std::vector<PageRun>& runs, int out_fd,
                        const std::string& out_object, uint64_t out_offset) {
    add_runs(source, runs, {out_fd, out_object, false, out_offset});
}

void PagePump::add_runs(const PageSource& source, const std::vector<PageRun>& runs, Target target) {
    if (runs.empty())
        return;
    uint64_t out_offset = target.begin;
    sources_.push_back(source);
    targets_.push_back(std::move(target));
    start_chunk(out_offset);
    for (PageRun run : runs) {
        while (run.start < run.end) {
            if (chunks_.back().size == kChunkSize)
                start_chunk(out_offset);
            Chunk& chunk = chunks_.back();
            auto size = std::min<uint64_t>(run.end - run.start, kChunkSize - chunk.size);
            ranges_.push_back({reinterpret_cast<void*>(run.start), size});
            ++chunk.ranges;
            chunk.size += static_cast<uint32_t>(size);
            out_offset += size;
            bytes_ += size;
            run.start += size;
        }
    }
}

std::vector<images::FileDigest> PagePump::digests() const {
    std::vector<images::FileDigest> files;
    for (const Batch& batch : batches_) {
        if (!targets_[batch.target].whole)
            continue;
        const Chunk& last = chunks_[batch.first_chunk + batch.chunks - 1];
        if (last.out_offset < images::kDigestChunk)
            files.push_back({targets_[batch.target].object, 0, {}});
        files.back().chunks.push_back(batch.digest);
        files.back().size = last.out_offset + last.size;
    }
    return files;
}

Result<void> PagePump::run(Steps& steps, unsigned threads) {
    if (threads == 0)
        threads = bytes_ >= kWorthAThread ? std::min(2u, std::thread::hardware_concurrency()) : 1;
    PumpRun run(*this, steps);
    std::vector<std::thread> helpers;
    {
        BlockSignals guard;
        try {
            while (helpers.size() + 1 < threads)
                helpers.emplace_back([&run] { run.work(); });
        } catch (const std::system_error&) {
            // No more threads to be had: this one does the work.
        }
    }
    run.work();
    for (std::thread& helper : helpers)
        helper.join();
    return run.outcome();
}

}  // namespace checkpointd
