// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "core/base/scoped_fd.h"
#include "plugins/cuda/device_store.h"
#include "plugins/cuda/message.h"
#include "plugins/cuda/storage_calls.h"
#include "plugins/cuda/transfer.h"

namespace checkpointd::cuda {

// The device memory of other processes, while the driver has mapped it here or only we have it: kMapCheckpoint and what
// follows it in message.h. What is asked of one process must not be asked at the same time; of several it may.
class HeldStorage {
  public:
    explicit HeldStorage(const StorageCalls& calls) : calls_(calls) {}
    HeldStorage(const HeldStorage&) = delete;
    HeldStorage& operator=(const HeldStorage&) = delete;
    ~HeldStorage();

    Answer serve(const Request& request, ScopedFd file);
    // Processes of which there is something here.
    std::vector<pid_t> living() const { return list(false); }
    std::vector<pid_t> ended() const { return list(true); }
    // Forgets one, as what is asked of it.
    void drop(pid_t pid);
    // Of the devices, once nothing is held.
    void release_contexts();

  private:
    struct Holding {
        ~Holding();
        void take(StorageInfo* mapped, bool for_restore);
        ScopedFd process;  // pidfd
        StorageInfo* info = nullptr;  // of the driver, until it is completed
        bool is_restore = false;
        std::vector<Mapping> mappings;  // of all its regions, or nothing may be copied
        std::unique_ptr<DeviceStore> store;
        std::unique_ptr<Transfer> transfer;
    };

    std::shared_ptr<Holding> find(pid_t pid);
    Result<std::shared_ptr<Holding>> make(pid_t pid);
    std::vector<pid_t> list(bool ended) const;
    Answer map(const Request& request);
    int call_driver(const Request& request, StorageInfo** info);
    int take_mappings(Holding& holding, const StorageInfo& info);
    static bool has_all(const Holding& holding);
    int describe(const StorageRegion& region, Mapping& out);
    int retain_contexts();
    Answer copy(Holding& holding, const Request& request, ScopedFd file);
    Answer prepare_store(Holding& holding, const Request& request, ScopedFd file);
    Answer place(Holding& holding);
    Answer wait(Holding& holding, const Request& request);
    Answer complete(pid_t pid, Holding& holding);
    bool is_over(pid_t pid, const Holding& holding) const;
    static int32_t state_of(Holding& holding);

    const StorageCalls& calls_;
    std::timed_mutex mapping_;  // the driver wants this done by one at a time
    mutable std::mutex mutex_;
    std::map<pid_t, std::shared_ptr<Holding>> holdings_;
    std::vector<int> contexts_;  // devices whose primary context is retained, which the driver wants before it maps
};

}  // namespace checkpointd::cuda
