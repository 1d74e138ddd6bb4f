// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/amdgpu/transfer.h"

#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>

#include "plugins/host/cancelled.h"

namespace checkpointd::amdgpu {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kPage = 4096;
constexpr uint64_t kHugePage = 2u << 20;
constexpr uint64_t kLeastPiece = 64u << 10;
constexpr uint64_t kMostPiece = kHugePage;  // more memory costs more than bigger pieces gain

// Anonymous memory of huge pages, where the kernel has them: a disk is asked for so many ranges of
// memory at once and no more (queue/max_segments in sysfs), and each small page may be one.
// Released: it stays for good.
class Staging {
  public:
    static Result<Staging> make(uint64_t size) {
        void* mapped = mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped == MAP_FAILED)
            return fail_errno("staging memory", fmt::format("{} bytes cannot be had", size));
        Staging made(static_cast<std::byte*>(mapped), size);
        madvise(made.data(), size, MADV_HUGEPAGE);
        for (uint64_t at = 0; at < size; at += kPage)
            made.data()[at] = std::byte{0};
        return made;
    }
    Staging() = default;
    Staging(Staging&& other) noexcept : mapped_(other.mapped_), size_(other.size_) {
        other.release();
    }
    Staging& operator=(Staging&& other) noexcept {
        std::swap(mapped_, other.mapped_);
        std::swap(size_, other.size_);
        return *this;
    }
    ~Staging() {
        if (mapped_ != nullptr)
            munmap(mapped_, size_ + kHugePage);
    }
    void release() { mapped_ = nullptr; }
    std::byte* data() const {
        return mapped_ + (-reinterpret_cast<uintptr_t>(mapped_) % kHugePage);
    }
    uint64_t size() const { return size_; }

  private:
    Staging(std::byte* mapped, uint64_t size) : mapped_(mapped), size_(size) {}
    std::byte* mapped_ = nullptr;  // begins anywhere, with room for data() at a huge page
    uint64_t size_ = 0;
};

}  // namespace

uint64_t piece_bytes(const TransferOptions& options) {
    const uint64_t parts = std::max<uint64_t>(1, options.gpu_count) * std::max(1u, options.pieces);
    return std::clamp(options.staging_bytes / parts, kLeastPiece, kMostPiece) / kPage * kPage;
}

// One GPU.
class TransferPipeline::Lane {
  public:
    Lane(TransferPipeline& pipeline, uint32_t render_minor)
        : pipeline_(pipeline), render_minor_(render_minor), thread_([this] { run(); }) {}
    ~Lane() { join(); }

    void add(BufferTransfer transfer) {
        const std::lock_guard lock(mutex_);
        queue_.push_back(std::move(transfer));
        wake_.notify_one();
    }
    // What is queued yet is done, unless the pipeline stops.
    void join() {
        {
            const std::lock_guard lock(mutex_);
            closed_ = true;
            wake_.notify_one();
        }
        if (thread_.joinable())
            thread_.join();
    }
    void wake() { wake_.notify_one(); }

  private:
    // One buffer, from its first piece to its last.
    struct Job {
        BufferTransfer transfer;
        uint64_t buffer = 0;   // of the engine
        uint64_t started = 0;  // bytes that the engine was given
        uint64_t ended = 0;
    };
    // One piece that is under way.
    struct Piece {
        std::shared_ptr<Job> job;
        std::byte* room = nullptr;    // of staging memory
        std::byte* memory = nullptr;  // the contents in it
        uint64_t offset = 0;          // into the buffer
        uint64_t size = 0;
        uint64_t fence = 0;
    };

    void run() {
        auto result = open();
        while (result) {
            auto next = take(pieces_.empty());
            if (next)
                result = copy(std::move(*next));
            else if (!pieces_.empty())
                result = end_oldest();
            else
                break;
        }
        if (!result)
            pipeline_.fail_all(std::move(result).error());
        leave();
    }

    Result<void> open() {
        const uint64_t size = piece_bytes(pipeline_.options_);
        CKPT_ASSIGN(staging_, Staging::make(size * std::max(1u, pipeline_.options_.pieces)));
        for (uint64_t at = 0; at < staging_.size(); at += size)
            free_.push_back(staging_.data() + at);
        CKPT_ASSIGN(engine_, pipeline_.open_engine_(render_minor_));
        return engine_->pin(staging_.data(), staging_.size());
    }

    // None: nothing is queued, or nothing will be done any more. Waits only where told to.
    std::optional<BufferTransfer> take(bool waits) {
        std::unique_lock lock(mutex_);
        // In slices: whoever cancels wakes nobody.
        while (waits && queue_.empty() && !closed_ && pipeline_.check())
            wake_.wait_for(lock, std::chrono::milliseconds(50));
        if (queue_.empty() || !pipeline_.check())
            return std::nullopt;
        BufferTransfer next = std::move(queue_.front());
        queue_.pop_front();
        return next;
    }

    Result<void> copy(BufferTransfer transfer) {
        auto job = std::make_shared<Job>(Job{std::move(transfer)});
        CKPT_ASSIGN(job->buffer, engine_->attach(job->transfer.dmabuf.get(), job->transfer.size));
        job->transfer.dmabuf.reset();
        while (job->started < job->transfer.size) {
            CKPT_TRY(pipeline_.check());
            if (free_.empty())
                CKPT_TRY(end_oldest());
            CKPT_TRY(start_piece(job));
        }
        return {};
    }

    // Pieces end at multiples of their size in the file: what is read are whole pages, and has room
    // in as many.
    uint64_t next_size(const Job& job) const {
        const uint64_t most = piece_bytes(pipeline_.options_);
        const uint64_t at = job.transfer.file_offset + job.started;
        return std::min(most - at % most, job.transfer.size - job.started);
    }

    Result<void> start_piece(const std::shared_ptr<Job>& job) {
        Piece piece{job, free_.back(), free_.back(), job->started, next_size(*job)};
        if (pipeline_.direction_ == Direction::kToDevice) {
            const BufferTransfer& transfer = job->transfer;
            auto read = transfer.read(transfer.file_offset + piece.offset, piece.size, piece.room);
            if (!read)
                return tl::unexpected(
                    std::move(read).error().wrap(transfer.name, "its contents cannot be read"));
            piece.memory = *read;
        }
        CKPT_ASSIGN(piece.fence, engine_->start({pipeline_.direction_, job->buffer, piece.offset,
                                                 piece.memory, piece.size}));
        free_.pop_back();
        job->started += piece.size;
        pieces_.push_back(std::move(piece));
        return {};
    }

    Result<void> end_oldest() {
        Piece piece = std::move(pieces_.front());
        const auto& options = pipeline_.options_;
        const auto deadline = std::min(options.deadline, Clock::now() + options.copy_timeout);
        auto waited = engine_->wait(piece.fence, deadline);
        if (!waited) {
            is_stuck_ = waited.error().kind == ErrorKind::kTimeout;
            return tl::unexpected(std::move(waited).error().wrap(piece.job->transfer.name,
                                                                 "its contents cannot be copied"));
        }
        pieces_.pop_front();
        if (pipeline_.direction_ == Direction::kFromDevice)
            CKPT_TRY(write_piece(piece));
        free_.push_back(piece.room);
        return end_piece(piece);
    }

    Result<void> end_piece(const Piece& piece) {
        pipeline_.count(piece.size);
        piece.job->ended += piece.size;
        if (piece.job->ended < piece.job->transfer.size)
            return {};
        CKPT_TRY(engine_->detach(piece.job->buffer));
        if (piece.job->transfer.on_done)
            piece.job->transfer.on_done();
        return {};
    }

    static Result<void> write_piece(const Piece& piece) {
        const BufferTransfer& transfer = piece.job->transfer;
        for (uint64_t done = 0; done < piece.size;) {
            const ssize_t wrote =
                pwrite(transfer.file->get(), piece.memory + done, piece.size - done,
                       static_cast<off_t>(transfer.file_offset + piece.offset + done));
            if (wrote < 0 && errno != EINTR)
                return fail_errno(transfer.name, "its contents cannot be written");
            done += static_cast<uint64_t>(std::max<ssize_t>(wrote, 0));
        }
        return {};
    }

    // Copies that are under way would go on reading and writing staging memory: they are waited
    // for, and where that cannot be, engine and memory are left to the end of this process.
    void leave() {
        while (!is_stuck_ && !pieces_.empty()) {
            auto waited = engine_->wait(pieces_.front().fence,
                                        Clock::now() + pipeline_.options_.copy_timeout);
            is_stuck_ = !waited && waited.error().kind == ErrorKind::kTimeout;
            pieces_.pop_front();
        }
        if (is_stuck_) {
            (void)engine_.release();
            staging_.release();
        }
        engine_.reset();
    }

    TransferPipeline& pipeline_;
    const uint32_t render_minor_;
    Staging staging_;
    std::unique_ptr<CopyEngine> engine_;
    std::vector<std::byte*> free_;
    std::deque<Piece> pieces_;  // the oldest first
    bool is_stuck_ = false;
    std::mutex mutex_;  // of queue_, closed_
    std::condition_variable wake_;
    std::deque<BufferTransfer> queue_;
    bool closed_ = false;
    std::thread thread_;  // last: it uses the others
};

TransferPipeline::TransferPipeline(Direction direction, TransferOptions options,
                                   OpenEngine open_engine)
    : direction_(direction), options_(std::move(options)), open_engine_(std::move(open_engine)) {}

TransferPipeline::~TransferPipeline() {
    stop_ = true;
    lanes_.clear();
}

TransferPipeline::Lane& TransferPipeline::lane(uint32_t render_minor) {
    auto& lane = lanes_[render_minor];
    if (!lane)
        lane = std::make_unique<Lane>(*this, render_minor);
    return *lane;
}

void TransferPipeline::add(uint32_t render_minor, BufferTransfer transfer) {
    added_ += transfer.size;
    Lane* found = nullptr;
    {
        const std::lock_guard lock(mutex_);
        found = &lane(render_minor);
    }
    found->add(std::move(transfer));
}

void TransferPipeline::expect(uint64_t bytes) {
    expected_ = bytes;
}

void TransferPipeline::fail_all(Error error) {
    const std::lock_guard lock(mutex_);
    if (!error_)
        error_ = std::make_unique<Error>(std::move(error));
    stop_ = true;
}

void TransferPipeline::count(uint64_t bytes) {
    const uint64_t done = done_ += bytes;
    if (options_.progress)
        options_.progress(done, std::max(added_.load(), expected_.load()));
}

Result<void> TransferPipeline::check() const {
    if (stop_)
        return fail(ErrorKind::kCancelled, "GPU memory", "something else failed");
    if (is_cancelled(options_.cancel_fd))
        return fail(ErrorKind::kCancelled, "GPU memory", "cancelled while it was copied");
    if (Clock::now() >= options_.deadline)
        return fail(ErrorKind::kTimeout, "GPU memory", "is not copied in time",
                    "raise the timeout of this phase in the policy");
    return {};
}

Result<void> TransferPipeline::finish() {
    for (auto& [minor, lane] : lanes_)
        lane->join();
    const std::lock_guard lock(mutex_);
    if (error_)
        return tl::unexpected(*error_);
    if (done_ == added_)
        return {};
    CKPT_TRY(check());
    return fail(ErrorKind::kInternal, "GPU memory", "not all of it was copied");
}

}  // namespace checkpointd::amdgpu
