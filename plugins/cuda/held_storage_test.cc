// SPDX-License-Identifier: LGPL-2.1-or-later
#include <cstdlib>
#include <cstring>
#include <gtest/gtest.h>
#include <unistd.h>

#include "plugins/cuda/held_storage.h"

namespace checkpointd::cuda {
namespace {

constexpr size_t kSize = 3 << 20;

// A driver with one device and one process, ours. Its calls have no context, so neither has this.
struct FakeDriver {
    std::vector<char> device = std::vector<char>(kSize);
    ProcessState state = ProcessState::kLocked;
    StorageRegion region{};
    StorageInfo info{};
    int completed = 0;           // operations, once each
    int says = kSuccess;         // of a call that was done
    int says_nothing = kSuccess;  // of one that was not
    int copying = kSuccess;
};
FakeDriver* driver = nullptr;

int map(ProcessState from, ProcessState to, StorageInfo** out) {
    if (driver->state != from)
        return kIllegalState;
    if (to == ProcessState::kRestoring)
        std::fill(driver->device.begin(), driver->device.end(), '?');
    driver->region = {reinterpret_cast<uint64_t>(driver->device.data()), kSize, driver};
    driver->info = {driver, &driver->region, 1};
    driver->state = to;
    *out = &driver->info;
    return driver->says;
}

int complete() {
    if (driver->says_nothing != kSuccess)
        return driver->says_nothing;
    if (driver->state != ProcessState::kCheckpointing && driver->state != ProcessState::kRestoring)
        std::abort();  // it has forgotten this operation
    if (driver->state == ProcessState::kCheckpointing)
        std::fill(driver->device.begin(), driver->device.end(), 0);
    driver->state = driver->state == ProcessState::kRestoring ? ProcessState::kLocked : ProcessState::kCheckpointed;
    ++driver->completed;
    return driver->says;
}

StorageCalls make_calls() {
    StorageCalls calls;
    calls.checkpoint = [](int, CheckpointArgs* args) {
        return map(ProcessState::kLocked, ProcessState::kCheckpointing, args->storage_out);
    };
    calls.restore = [](int, RestoreArgs* args) {
        return map(ProcessState::kCheckpointed, ProcessState::kRestoring, args->storage_out);
    };
    calls.complete = [](void*) { return complete(); };
    calls.state = [](int, ProcessState* state) { return *state = driver->state, int{kSuccess}; };
    calls.device_count = [](int* count) { return *count = 1, int{kSuccess}; };
    calls.device = [](int* device, int) { return *device = 0, int{kSuccess}; };
    calls.uuid = [](Uuid* uuid, int) { return *uuid = {}, int{kSuccess}; };
    calls.context_retain = [](void** context, int) { return *context = driver, int{kSuccess}; };
    calls.context_release = [](int) { return int{kSuccess}; };
    calls.context_set = [](void*) { return int{kSuccess}; };
    calls.context_device = [](int* device) { return *device = 0, int{kSuccess}; };
    calls.stream_context = [](void*, void** context, void**) { return *context = driver, int{kSuccess}; };
    calls.stream_create = [](void** stream, unsigned) { return *stream = driver, int{kSuccess}; };
    calls.stream_destroy = calls.stream_wait = [](void*) { return int{kSuccess}; };
    calls.event_create = calls.stream_create;
    calls.event_destroy = calls.event_wait = calls.stream_wait;
    calls.event_record = [](void*, void*) { return int{kSuccess}; };
    calls.host_alloc = [](void** memory, size_t size, unsigned) {
        return posix_memalign(memory, DeviceStore::kAlignment, DeviceStore::aligned(size));
    };
    calls.host_free = [](void* memory) { return std::free(memory), int{kSuccess}; };
    calls.copy_out = [](void* to, uint64_t from, size_t size, void*) {
        std::memcpy(to, reinterpret_cast<void*>(from), size);
        return driver->copying;
    };
    calls.copy_in = [](uint64_t to, const void* from, size_t size, void*) {
        std::memcpy(reinterpret_cast<void*>(to), from, size);
        return driver->copying;
    };
    return calls;
}

class CudaHeldStorage : public testing::Test {
  protected:
    CudaHeldStorage() {
        driver = &driver_;
        set('a');
    }
    void set(char what) { std::fill(driver_.device.begin(), driver_.device.end(), what); }
    bool has(char what) const { return driver_.device == std::vector<char>(kSize, what); }
    Answer ask(Operation operation, uint32_t timeout_ms = 10000) {
        Request request = request_for(operation, getpid());
        request.timeout_ms = timeout_ms;
        return storage_.serve(request, ScopedFd());
    }
    int32_t held() { return ask(Operation::kHeld).value; }
    // Each as far as it comes: what the last one answered.
    int go_through(std::initializer_list<Operation> operations) {
        int code = kSuccess;
        for (Operation operation : operations)
            code = ask(operation).code;
        return code;
    }
    int take_off() {
        return go_through({Operation::kMapCheckpoint, Operation::kCopy, Operation::kWait, Operation::kComplete});
    }
    int put_back() {
        return go_through({Operation::kMapRestore, Operation::kCopy, Operation::kWait, Operation::kComplete});
    }

    FakeDriver driver_;
    StorageCalls calls_ = make_calls();
    HeldStorage storage_{calls_};
};

TEST_F(CudaHeldStorage, OffTheDeviceAndBack) {
    ASSERT_EQ(take_off(), kSuccess);
    EXPECT_EQ(held(), kHeldContents);
    ASSERT_EQ(put_back(), kSuccess);
    EXPECT_TRUE(has('a'));
    EXPECT_EQ(held(), 0);
    EXPECT_EQ(driver_.completed, 2);
}

TEST_F(CudaHeldStorage, WhatIsCompletedIsForgottenWhateverIsAnswered) {
    driver_.says = 999;
    EXPECT_EQ(take_off(), 999);
    EXPECT_EQ(held(), kHeldContents);
    EXPECT_EQ(put_back(), 999);
    EXPECT_TRUE(has('a'));
    EXPECT_EQ(held(), 0) << "or the helper would never be idle";
    EXPECT_TRUE(storage_.living().empty());
    storage_.drop(getpid());
    EXPECT_EQ(driver_.completed, 2);
}

TEST_F(CudaHeldStorage, WhatIsNotCompletedIsTriedAgain) {
    driver_.says_nothing = 999;
    EXPECT_EQ(take_off(), 999);
    EXPECT_EQ(held(), kHeldMapped | kHeldCopied | kHeldContents);
    driver_.says_nothing = kSuccess;
    EXPECT_EQ(ask(Operation::kComplete).code, kSuccess);
    EXPECT_EQ(held(), kHeldContents);
}

// The driver's state cannot be had just then, so nobody knows that the operation was completed.
TEST_F(CudaHeldStorage, AMappingIsCopiedAnewWhateverWasCopiedBefore) {
    calls_.state = [](int, ProcessState*) { return int{kOperatingSystem}; };
    driver_.says = 999;
    EXPECT_EQ(take_off(), 999);
    EXPECT_EQ(ask(Operation::kMapRestore).code, 999);
    EXPECT_EQ(held() & kHeldCopied, 0);
    EXPECT_EQ(ask(Operation::kComplete).code, kIllegalState) << "it has garbage";
    EXPECT_EQ(go_through({Operation::kCopy, Operation::kWait, Operation::kComplete}), 999);
    EXPECT_TRUE(has('a'));
    set('b');
    EXPECT_EQ(ask(Operation::kMapCheckpoint).code, 999);
    EXPECT_EQ(held() & (kHeldCopied | kHeldContents), 0);
    EXPECT_EQ(ask(Operation::kComplete).code, kIllegalState) << "its numbers would be gone";
    EXPECT_EQ(go_through({Operation::kCopy, Operation::kWait, Operation::kComplete}), 999);
    EXPECT_EQ(put_back(), 999);
    EXPECT_TRUE(has('b')) << "not those of before";
}

TEST_F(CudaHeldStorage, ARefusedMappingLosesNothing) {
    ASSERT_EQ(take_off(), kSuccess);
    EXPECT_EQ(ask(Operation::kMapCheckpoint).code, kIllegalState) << "it is off its device already";
    EXPECT_EQ(held(), kHeldContents);
    ASSERT_EQ(put_back(), kSuccess);
    EXPECT_TRUE(has('a'));
}

}  // namespace
}  // namespace checkpointd::cuda
