// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/held_storage.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <poll.h>

#include "core/kernel/pidfd.h"
#include "core/kernel/room.h"

namespace checkpointd::cuda {
namespace {

Answer with_code(int code) {
    Answer answer;
    answer.code = code;
    return answer;
}

Answer refusal(const std::string& why, int code = kStoreFailed, int errno_code = 0) {
    Answer answer = with_code(code);
    answer.errno_code = errno_code;
    std::strncpy(answer.text, why.c_str(), sizeof(answer.text) - 1);
    return answer;
}

bool has_ended(int pidfd) {
    pollfd process{pidfd, POLLIN, 0};
    return poll(&process, 1, 0) > 0;
}

}  // namespace

// The transfer uses the store.
HeldStorage::Holding::~Holding() { transfer.reset(); }

// What was copied before is of another time: nothing of it says that this is copied, and what a checkpoint maps is newer.
void HeldStorage::Holding::take(StorageInfo* mapped, bool for_restore) {
    info = mapped;
    is_restore = for_restore;
    transfer.reset();
    if (!for_restore)
        store.reset();
}

HeldStorage::~HeldStorage() {
    holdings_.clear();
    release_contexts();
}

std::shared_ptr<HeldStorage::Holding> HeldStorage::find(pid_t pid) {
    std::lock_guard lock(mutex_);
    auto found = holdings_.find(pid);
    return found == holdings_.end() || has_ended(found->second->process.get()) ? nullptr : found->second;
}

Result<std::shared_ptr<HeldStorage::Holding>> HeldStorage::make(pid_t pid) {
    if (auto found = find(pid))
        return found;
    drop(pid);  // of another process with this number
    auto holding = std::make_shared<Holding>();
    CKPT_ASSIGN(holding->process, pidfd_open(pid));
    std::lock_guard lock(mutex_);
    holdings_[pid] = holding;
    return holding;
}

void HeldStorage::drop(pid_t pid) {
    std::shared_ptr<Holding> last;
    {
        std::lock_guard lock(mutex_);
        auto found = holdings_.find(pid);
        if (found == holdings_.end())
            return;
        last = std::move(found->second);
        holdings_.erase(found);
    }
    last->transfer.reset();
    if (last->info != nullptr)
        (void)calls_.complete(last->info->operation);  // of a process that is dead: what is mapped goes
}

// They take memory of the devices.
void HeldStorage::release_contexts() {
    std::unique_lock nobody_maps(mapping_, std::try_to_lock);
    std::lock_guard lock(mutex_);
    if (!nobody_maps || !holdings_.empty())
        return;
    for (int device : contexts_)
        (void)calls_.context_release(device);
    contexts_.clear();
}

std::vector<pid_t> HeldStorage::list(bool ended) const {
    std::vector<pid_t> pids;
    std::lock_guard lock(mutex_);
    for (const auto& [pid, holding] : holdings_)
        if (has_ended(holding->process.get()) == ended)
            pids.push_back(pid);
    return pids;
}

int HeldStorage::retain_contexts() {
    int count = 0;
    if (int code = calls_.device_count(&count); code != kSuccess)
        return code;
    for (int i = 0; i < count; ++i) {
        int device = 0;
        void* context = nullptr;
        if (int code = calls_.device(&device, i); code != kSuccess)
            return code;
        if (std::find(contexts_.begin(), contexts_.end(), device) != contexts_.end())
            continue;
        if (int code = calls_.context_retain(&context, device); code != kSuccess)
            return code;
        contexts_.push_back(device);
    }
    return kSuccess;
}

// A pointer of a mapping has no context, its stream has.
int HeldStorage::describe(const StorageRegion& region, Mapping& out) {
    void* green = nullptr;
    int device = 0;
    int code = calls_.stream_context(region.stream, &out.context, &green);
    if (code == kSuccess)
        code = calls_.context_set(out.context);
    if (code == kSuccess)
        code = calls_.context_device(&device);
    if (code == kSuccess)
        code = calls_.uuid(&out.region.uuid, device);
    out.stream = region.stream;
    out.pointer = region.pointer;
    out.region.size = region.size;
    return code;
}

int HeldStorage::take_mappings(Holding& holding, const StorageInfo& info) {
    holding.mappings.clear();
    for (uint32_t i = 0; i < info.region_count; ++i) {
        Mapping mapping{};
        if (int code = describe(info.regions[i], mapping); code != kSuccess)
            return code;
        holding.mappings.push_back(mapping);
    }
    return kSuccess;
}

// What was not described would not be copied, and be gone once the driver lets go of it.
bool HeldStorage::has_all(const Holding& holding) {
    return holding.info != nullptr && holding.mappings.size() == holding.info->region_count;
}

int HeldStorage::call_driver(const Request& request, StorageInfo** info) {
    if (request.operation == Operation::kMapCheckpoint) {
        CheckpointArgs args{};
        args.storage_out = info;
        return calls_.checkpoint(request.pid, &args);
    }
    RestoreArgs args{};
    args.pairs = request.pair_count > 0 ? request.pairs : nullptr;
    args.pair_count = std::min(request.pair_count, kMaxDevices);
    args.storage_out = info;
    return calls_.restore(request.pid, &args);
}

Answer HeldStorage::map(const Request& request) {
    std::unique_lock turn(mapping_, std::chrono::milliseconds(request.timeout_ms));
    if (!turn)
        return refusal("the driver is at work on another process", kTimeout);
    if (int code = retain_contexts(); code != kSuccess)
        return with_code(code);
    auto holding = make(request.pid);
    if (!holding)
        return refusal(holding.error().line());
    StorageInfo* info = nullptr;
    const int code = call_driver(request, &info);
    if (info == nullptr) {
        if ((*holding)->store == nullptr)
            drop(request.pid);
        return with_code(code == kSuccess ? kNotSupported : code);
    }
    // Whatever else it answered: somebody must complete this.
    (*holding)->take(info, request.operation == Operation::kMapRestore);
    Answer answer = with_code(code);
    if (int told = take_mappings(**holding, *info); told != kSuccess)
        answer.code = told;
    else if (info->region_count > kMaxDevices)
        answer.code = kNotSupported;
    for (const Mapping& mapping : (*holding)->mappings)
        if (answer.device_count < kMaxDevices)
            answer.devices[answer.device_count++] = {mapping.region.uuid, mapping.region.size, 0};
    return answer;
}

// Says where in the store each mapping is.
Answer HeldStorage::place(Holding& holding) {
    const auto& regions = holding.store->regions();
    for (Mapping& mapping : holding.mappings) {
        auto found = std::find_if(regions.begin(), regions.end(),
                                  [&](const Region& region) { return region.uuid == mapping.region.uuid; });
        if (found == regions.end() || found->size != mapping.region.size)
            return refusal("what the driver maps is not what the image has of this device", kInvalidValue);
        mapping.region.offset = found->offset;
    }
    if (regions.size() != holding.mappings.size())
        return refusal("the image has memory of more devices than the driver maps", kInvalidValue);
    return {};
}

Answer HeldStorage::prepare_store(Holding& holding, const Request& request, ScopedFd file) {
    if (file) {
        const uint32_t count = std::min(request.region_count, kMaxDevices);
        std::vector<Region> regions(request.regions, request.regions + count);
        holding.store = std::make_unique<DeviceStore>(std::move(file), std::move(regions));
        return {};
    }
    if (holding.is_restore)
        return holding.store ? Answer() : refusal("nothing is held of its device memory");
    if (!holding.store) {
        std::vector<Region> regions;
        uint64_t offset = 0;
        for (const Mapping& mapping : holding.mappings) {
            regions.push_back({mapping.region.uuid, mapping.region.size, offset});
            offset += DeviceStore::aligned(mapping.region.size);
        }
        holding.store = std::make_unique<DeviceStore>(ScopedFd(), std::move(regions));
    }
    const uint64_t all = holding.store->bytes();
    const uint64_t left = all - (holding.transfer ? std::min(holding.transfer->bytes(), all) : 0);
    auto room = available_memory();
    if (!room || *room >= left)
        holding.store->overflow();
    else if (!holding.transfer || holding.transfer->code() == kStoreFailed)
        return refusal(fmt::format("host memory has no room for {} MiB of the device", left >> 20), kOutOfMemory);
    return {};  // where there is no room, the file was late only
}

Answer HeldStorage::copy(Holding& holding, const Request& request, ScopedFd file) {
    if (holding.info == nullptr)
        return refusal("nothing of it is mapped", kIllegalState);
    if (holding.transfer) {
        holding.transfer->stop();
        (void)holding.transfer->wait(std::chrono::hours(24));
    }
    if (int told = has_all(holding) ? kSuccess : take_mappings(holding, *holding.info); told != kSuccess)
        return with_code(told);
    Answer answer = prepare_store(holding, request, std::move(file));
    if (answer.code == kSuccess)
        answer = place(holding);
    if (answer.code != kSuccess)
        return answer;
    const auto direction = holding.is_restore ? Transfer::Direction::kIn : Transfer::Direction::kOut;
    holding.transfer = std::make_unique<Transfer>(calls_, holding.mappings, *holding.store, direction);
    return answer;
}

Answer HeldStorage::wait(Holding& holding, const Request& request) {
    if (!holding.transfer)
        return refusal("nothing is copied", kIllegalState);
    const bool ended = holding.transfer->wait(std::chrono::milliseconds(request.timeout_ms));
    const Error& error = holding.transfer->error();
    Answer answer = !ended                                        ? with_code(kNotReady)
                    : holding.transfer->code() == kStoreFailed    ? refusal(error.line(), kStoreFailed, error.errno_code)
                    : holding.transfer->code() != kSuccess        ? with_code(holding.transfer->code())
                    : !holding.transfer->is_whole()               ? refusal("was stopped")
                                                                  : Answer();
    answer.bytes = holding.transfer->bytes();
    return answer;
}

// A call that failed may have done it nevertheless: then the driver has forgotten the operation.
bool HeldStorage::is_over(pid_t pid, const Holding& holding) const {
    ProcessState now{};
    return calls_.state(pid, &now) == kSuccess &&
           now == (holding.is_restore ? ProcessState::kLocked : ProcessState::kCheckpointed);
}

Answer HeldStorage::complete(pid_t pid, Holding& holding) {
    using namespace std::chrono_literals;
    if (holding.info == nullptr)
        return refusal("nothing of it is mapped", kIllegalState);
    if (!holding.transfer || !holding.transfer->wait(0ms) || !holding.transfer->is_whole() || !has_all(holding))
        return refusal("not all of its device memory is copied", kIllegalState);
    const int code = calls_.complete(holding.info->operation);
    if (code != kSuccess && !is_over(pid, holding))
        return with_code(code);
    holding.info = nullptr;
    holding.transfer.reset();
    holding.mappings.clear();
    if (holding.is_restore)
        drop(pid);
    return with_code(code);
}

int32_t HeldStorage::state_of(Holding& holding) {
    int32_t bits = (holding.info != nullptr ? kHeldMapped : 0) | (holding.is_restore ? kHeldRestore : 0) |
                   (holding.store ? kHeldContents : 0);
    if (holding.transfer && !holding.transfer->wait(std::chrono::milliseconds(0)))
        bits |= kHeldCopying;
    else if (holding.transfer && holding.transfer->is_whole())
        bits |= kHeldCopied;
    return bits;
}

Answer HeldStorage::serve(const Request& request, ScopedFd file) {
    if (!calls_.all())
        return with_code(kNotSupported);
    if (request.operation == Operation::kMapCheckpoint || request.operation == Operation::kMapRestore)
        return map(request);
    const auto holding = find(request.pid);
    if (!holding && request.operation != Operation::kHeld)
        return refusal("nothing is held of it", kIllegalState);
    switch (request.operation) {
        case Operation::kCopy: return copy(*holding, request, std::move(file));
        case Operation::kWait: return wait(*holding, request);
        case Operation::kStop:
            if (holding->transfer)
                holding->transfer->stop();
            return {};
        case Operation::kComplete: return complete(request.pid, *holding);
        default: break;
    }
    Answer answer;
    answer.value = holding ? state_of(*holding) : 0;
    return answer;
}

}  // namespace checkpointd::cuda
