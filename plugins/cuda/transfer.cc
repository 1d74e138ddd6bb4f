// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/transfer.h"

#include <algorithm>
#include <array>

namespace checkpointd::cuda {
namespace {

// More streams, or larger pieces, slow copies into such a mapping down (measured on an A10G by others; see README).
constexpr size_t kLanes = 2;
constexpr size_t kMostPiece = 32u << 20;
constexpr size_t kLeastPiece = 1u << 20;
constexpr unsigned kPortable = 1;       // CU_MEMHOSTALLOC_PORTABLE
constexpr unsigned kNonBlocking = 1;    // CU_STREAM_NON_BLOCKING
constexpr unsigned kWithoutTiming = 2;  // CU_EVENT_DISABLE_TIMING

// Small memory is cut as well: both lanes have something to do, and pinned memory stays small.
size_t piece_of(uint64_t size) {
    return std::clamp<uint64_t>((size / 8 + kLeastPiece - 1) / kLeastPiece * kLeastPiece, kLeastPiece, kMostPiece);
}

}  // namespace

// One stream and its two buffers.
class Transfer::Lane {
  public:
    Lane(Transfer& transfer, const Job& job) : transfer_(transfer), calls_(transfer.calls_), job_(job) {}
    Lane(const Lane&) = delete;
    Lane& operator=(const Lane&) = delete;
    ~Lane();

    int open();
    Result<int> put(uint64_t offset);   // out: this piece begins, the one before it is stored
    Result<int> take(uint64_t offset);  // in
    Result<int> finish();

  private:
    struct Buffer {
        void* memory = nullptr;
        void* event = nullptr;
        std::optional<uint64_t> offset;  // out: not stored yet
    };
    size_t size_at(uint64_t offset) const { return std::min<uint64_t>(job_.piece, job_.mapping.region.size - offset); }
    Buffer& other() { return buffers_[turn_ ^ 1]; }
    Result<int> store(Buffer& buffer);

    Transfer& transfer_;
    const StorageCalls& calls_;
    const Job& job_;
    void* stream_ = nullptr;
    std::array<Buffer, 2> buffers_;
    size_t turn_ = 0;
};

Transfer::Lane::~Lane() {
    if (stream_ != nullptr) {
        (void)calls_.stream_wait(stream_);  // before its buffers go
        (void)calls_.stream_destroy(stream_);
    }
    for (const Buffer& buffer : buffers_) {
        if (buffer.event != nullptr)
            (void)calls_.event_destroy(buffer.event);
        if (buffer.memory != nullptr)
            (void)calls_.host_free(buffer.memory);
    }
}

int Transfer::Lane::open() {
    int code = calls_.context_set(job_.mapping.context);
    if (code == kSuccess)
        code = calls_.stream_wait(job_.mapping.stream);  // what the driver has queued itself
    if (code == kSuccess)
        code = calls_.stream_create(&stream_, kNonBlocking);
    for (Buffer& buffer : buffers_) {
        if (code == kSuccess)
            code = calls_.host_alloc(&buffer.memory, job_.piece, kPortable);
        if (code == kSuccess)
            code = calls_.event_create(&buffer.event, kWithoutTiming);
    }
    return code;
}

Result<int> Transfer::Lane::store(Buffer& buffer) {
    if (!buffer.offset)
        return kSuccess;
    const uint64_t offset = *std::exchange(buffer.offset, std::nullopt);
    if (int code = calls_.event_wait(buffer.event); code != kSuccess)
        return code;
    CKPT_TRY(transfer_.store_.write(job_.mapping.region.offset + offset, buffer.memory, size_at(offset)));
    transfer_.bytes_ += size_at(offset);
    return kSuccess;
}

Result<int> Transfer::Lane::put(uint64_t offset) {
    Buffer& buffer = buffers_[turn_];
    int code = calls_.copy_out(buffer.memory, job_.mapping.pointer + offset, size_at(offset), stream_);
    if (code == kSuccess)
        code = calls_.event_record(buffer.event, stream_);
    if (code != kSuccess)
        return code;
    buffer.offset = offset;
    auto stored = store(other());
    turn_ ^= 1;
    return stored;
}

Result<int> Transfer::Lane::take(uint64_t offset) {
    Buffer& buffer = buffers_[turn_];
    int code = calls_.event_wait(buffer.event);  // what it held last is on the device; at first it holds nothing
    if (code != kSuccess)
        return code;
    CKPT_TRY(transfer_.store_.read(job_.mapping.region.offset + offset, buffer.memory, size_at(offset)));
    code = calls_.copy_in(job_.mapping.pointer + offset, buffer.memory, size_at(offset), stream_);
    if (code == kSuccess)
        code = calls_.event_record(buffer.event, stream_);
    if (code == kSuccess)
        transfer_.bytes_ += size_at(offset);
    turn_ ^= 1;
    return code;
}

// A copy that failed may be told of here only.
Result<int> Transfer::Lane::finish() {
    for (Buffer* buffer : {&buffers_[turn_], &other()}) {
        CKPT_ASSIGN(const int code, store(*buffer));
        if (code != kSuccess)
            return code;
    }
    return calls_.stream_wait(stream_);
}

Transfer::Transfer(const StorageCalls& calls, std::vector<Mapping> mappings, DeviceStore& store, Direction direction)
    : calls_(calls), store_(store), direction_(direction) {
    for (const Mapping& mapping : mappings) {
        jobs_.push_back(std::make_unique<Job>(mapping));
        jobs_.back()->piece = piece_of(mapping.region.size);
    }
    running_ = jobs_.size() * kLanes;
    for (const auto& job : jobs_)
        for (size_t i = 0; i < kLanes; ++i)
            threads_.emplace_back([this, &one = *job] { run_lane(one); });
}

Transfer::~Transfer() { stop(); }

bool Transfer::wait(std::chrono::milliseconds time) {
    std::unique_lock lock(mutex_);
    return ended_.wait_for(lock, time, [this] { return running_ == 0; });
}

void Transfer::fail_with(int code, Error error) {
    std::lock_guard lock(mutex_);
    is_whole_ = false;
    stopping_ = true;
    if (code_ == kSuccess) {
        code_ = code;
        error_ = std::move(error);
    }
}

std::optional<uint64_t> Transfer::next_piece(Job& job) {
    for (;;) {
        const uint64_t offset = job.next.fetch_add(job.piece);
        if (offset >= job.mapping.region.size)
            return std::nullopt;
        if (stopping_) {
            std::lock_guard lock(mutex_);
            is_whole_ = false;
            return std::nullopt;
        }
        if (direction_ == Direction::kIn || !store_.has(job.mapping.region.offset + offset))
            return offset;
        bytes_ += std::min<uint64_t>(job.piece, job.mapping.region.size - offset);
    }
}

void Transfer::run_lane(Job& job) {
    {
        Lane lane(*this, job);
        Result<int> code = lane.open();
        while (code && *code == kSuccess) {
            const auto offset = next_piece(job);
            if (!offset)
                break;
            code = direction_ == Direction::kOut ? lane.put(*offset) : lane.take(*offset);
        }
        if (code && *code == kSuccess)
            code = lane.finish();
        if (!code)
            fail_with(kStoreFailed, std::move(code).error());
        else if (*code != kSuccess)
            fail_with(*code, {});
    }
    lane_ended();
}

void Transfer::lane_ended() {
    std::lock_guard lock(mutex_);
    --running_;
    ended_.notify_all();
}

}  // namespace checkpointd::cuda
