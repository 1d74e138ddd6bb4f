// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/process.h"

#include <cerrno>
#include <thread>

#include "plugins/host/deadline.h"

namespace checkpointd::cuda {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

// More than the driver needs to say that a lock's own timeout has passed, or what a state is.
constexpr milliseconds kAnswerTime{10000};

const char* name_of(Operation operation) {
    switch (operation) {
        case Operation::kLock: return "lock";
        case Operation::kCheckpoint: return "checkpoint";
        case Operation::kRestore: return "restore";
        case Operation::kUnlock: return "unlock";
        default: return "ask for";
    }
}

const char* name_of(ProcessState state) {
    switch (state) {
        case ProcessState::kRunning: return "running";
        case ProcessState::kLocked: return "locked";
        case ProcessState::kCheckpointed: return "checkpointed";
        case ProcessState::kFailed: return "failed";
        case ProcessState::kCheckpointing: return "checkpointing";
        case ProcessState::kRestoring: return "restoring";
    }
    return "unknown";
}

std::string object_of(pid_t pid) { return fmt::format("pid {} (CUDA)", pid); }

std::string said(const Answer& answer) {
    return answer.code == kSuccess ? "success" : fmt::format("{} ({})", answer.text, answer.code);
}

Request request_for(Operation operation, pid_t pid) {
    Request request;
    request.operation = operation;
    request.pid = pid;
    return request;
}

}  // namespace

Result<std::optional<Process>> Process::find(Backend& backend, pid_t pid, Deadline deadline) {
    CKPT_ASSIGN(Answer answer, backend.ask(request_for(Operation::kThread, pid), deadline));
    if (answer.code == kSuccess)
        return std::optional<Process>(Process(backend, pid, answer.value));
    if (answer.code == kInvalidValue || answer.code == kNotInitialized)
        return std::optional<Process>();
    return fail(ErrorKind::kSystem, object_of(pid), fmt::format("the driver does not know it: {}", said(answer)));
}

Result<ProcessState> Process::state(Deadline deadline) const {
    CKPT_ASSIGN(Answer answer, backend_->ask(request_for(Operation::kState, pid_), deadline));
    if (answer.code != kSuccess)
        return fail(ErrorKind::kSystem, object_of(pid_), fmt::format("its state cannot be had: {}", said(answer)));
    return static_cast<ProcessState>(answer.value);
}

Result<void> Process::make(Operation operation, ProcessState wanted, uint32_t timeout_ms,
                           const std::vector<GpuPair>& pairs, Deadline deadline) {
    Request request = request_for(operation, pid_);
    request.timeout_ms = timeout_ms;
    for (const GpuPair& pair : pairs)
        if (request.pair_count < kMaxDevices)
            request.pairs[request.pair_count++] = pair;
    CKPT_ASSIGN(Answer answer, backend_->ask(request, deadline));
    CKPT_ASSIGN(const ProcessState now, state(Clock::now() + kAnswerTime));
    if (now == wanted)
        return {};
    return fail(timeout_ms != 0 && answer.code != kSuccess ? ErrorKind::kTimeout : ErrorKind::kSystem, object_of(pid_),
                fmt::format("the driver did not {} it: {}; it is {}", name_of(operation), said(answer), name_of(now)),
                operation == Operation::kLock ? "let its work on the device end, or raise plugins.cuda.lock-timeout" : "");
}

Result<void> Process::lock(milliseconds timeout) {
    touched_ = true;
    return make(Operation::kLock, ProcessState::kLocked, static_cast<uint32_t>(timeout.count()), {},
                Clock::now() + timeout + kAnswerTime);
}

// Of a task that is not held (any more) it runs anyhow.
Result<void> Process::release_thread(const ckptd_host* host) {
    if (is_loose_ || host == nullptr)
        return {};
    if (host->run_thread(host->context, pid_, thread_) == 0) {
        is_loose_ = true;
        return {};
    }
    return errno == EBUSY ? Result<void>()
                          : fail_errno(object_of(pid_), fmt::format("cannot let its thread {} run", thread_));
}

Result<void> Process::hold_thread(const ckptd_host* host) {
    if (!is_loose_)
        return {};
    is_loose_ = false;
    if (host->hold_thread(host->context, pid_, thread_, deadline_usec(Clock::now() + kAnswerTime)) != 0)
        return fail_errno(object_of(pid_), fmt::format("cannot stop its thread {} again", thread_));
    return {};
}

// A call that goes on keeps its thread running: it would never end otherwise.
Result<void> Process::with_thread(const ckptd_host* host, Operation operation, ProcessState wanted,
                                  const std::vector<GpuPair>& pairs, Deadline deadline) {
    CKPT_TRY(release_thread(host));
    auto made = make(operation, wanted, 0, pairs, deadline);
    if (!made && made.error().kind == ErrorKind::kTimeout)
        return made;
    auto held = hold_thread(host);
    CKPT_TRY(made);
    return held;
}

Result<void> Process::checkpoint(const ckptd_host& host, Deadline deadline) {
    return with_thread(&host, Operation::kCheckpoint, ProcessState::kCheckpointed, {}, deadline);
}

Result<void> Process::bring_back(const ckptd_host* host, const std::vector<GpuPair>& device_map, Deadline deadline) {
    if (!backend_->finish_late(deadline))
        return fail(ErrorKind::kTimeout, object_of(pid_), "the driver still works on it");
    CKPT_ASSIGN(ProcessState now, state(deadline));
    while ((now == ProcessState::kCheckpointing || now == ProcessState::kRestoring) && Clock::now() < deadline) {
        std::this_thread::sleep_for(milliseconds(10));
        CKPT_ASSIGN(now, state(deadline));
    }
    if (now == ProcessState::kCheckpointed) {
        CKPT_TRY(with_thread(host, Operation::kRestore, ProcessState::kLocked, device_map, deadline));
        now = ProcessState::kLocked;
    }
    CKPT_TRY(hold_thread(host));
    if (now == ProcessState::kLocked)
        CKPT_TRY(make(Operation::kUnlock, ProcessState::kRunning, 0, {}, deadline));
    else if (now != ProcessState::kRunning)
        return fail(ErrorKind::kSystem, object_of(pid_),
                    fmt::format("the driver says that it is {}", name_of(now)), "restart the unit");
    touched_ = false;
    return {};
}

}  // namespace checkpointd::cuda
