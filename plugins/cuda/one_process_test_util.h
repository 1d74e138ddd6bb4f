// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A driver without devices, for tests of what asks one.
#pragma once

#include <cstdio>
#include <unistd.h>
#include <utility>
#include <vector>

#include "plugins/cuda/process.h"
#include "plugins/cuda/uuid.h"

namespace checkpointd::cuda {

inline constexpr const char* kOne = "GPU-00112233-4455-6677-8899-aabbccddeeff";
inline constexpr const char* kTwo = "GPU-ffeeddcc-bbaa-9988-7766-554433221100";
inline const auto kDeadline = std::chrono::steady_clock::now() + std::chrono::hours(1);

// Of 80 GiB each, of which all but 10 and 5 are taken.
inline Answer two_devices() {
    Answer answer;
    answer.value = kStorageVersion;
    answer.offers_storage = 1;
    answer.device_count = 2;
    answer.devices[0] = {*parse_uuid(kOne), 80ull << 30, 10ull << 30};
    answer.devices[1] = {*parse_uuid(kTwo), 80ull << 30, 5ull << 30};
    return answer;
}

// A driver with one process, whose calls do what they should and answer `code`.
class OneProcess : public Backend {
  public:
    Result<Answer> ask(const Request& request, Deadline deadline, int) override {
        asked.push_back(request.operation);
        Answer answer;
        std::snprintf(answer.text, sizeof(answer.text), "said");
        switch (request.operation) {
            case Operation::kThread: answer.code = known; return answer;
            case Operation::kState: answer.value = static_cast<int32_t>(state); return answer;
            case Operation::kHeld: answer.value = held; return answer;
            case Operation::kMemory: return devices;
            case Operation::kUsage: return usage;
            case Operation::kCopy: copy_deadline = deadline; return answer;
            case Operation::kLock:
                lock_ms = request.timeout_ms;
                lock_deadline = deadline;
                state = ProcessState::kLocked;
                return answer;
            case Operation::kMapCheckpoint: state = ProcessState::kCheckpointing; break;
            case Operation::kMapRestore: state = ProcessState::kRestoring; break;
            case Operation::kComplete: complete(); break;
            case Operation::kRestore: state = ProcessState::kLocked; break;
            case Operation::kUnlock: state = ProcessState::kRunning; break;
            default: return answer;
        }
        answer.code = code;
        if (!thread_runs)
            without_thread.push_back(request.operation);
        return answer;
    }
    bool finish_late(Deadline) override { return true; }
    bool outlives_us() const override { return true; }

    void complete() {
        const bool was_restored = std::exchange(state, ProcessState::kCheckpointed) == ProcessState::kRestoring;
        held = was_restored ? 0 : kHeldContents;
        if (was_restored)
            state = ProcessState::kLocked;
    }
    Process process() { return **Process::find(*this, getpid(), kDeadline); }

    int32_t known = kSuccess, code = kSuccess, held = 0;
    ProcessState state = ProcessState::kLocked;
    Answer devices = two_devices(), usage;
    bool thread_runs = false;
    Deadline copy_deadline{}, lock_deadline{};
    uint32_t lock_ms = 0;
    std::vector<Operation> asked, without_thread;
};

// Lets the thread of that process run.
inline ckptd_host host_of(OneProcess& driver) {
    ckptd_host host{};
    host.context = &driver;
    host.run_thread = [](void* one, pid_t, pid_t) {
        static_cast<OneProcess*>(one)->thread_runs = true;
        return 0;
    };
    host.hold_thread = [](void* one, pid_t, pid_t, uint64_t) {
        static_cast<OneProcess*>(one)->thread_runs = false;
        return 0;
    };
    return host;
}

}  // namespace checkpointd::cuda
