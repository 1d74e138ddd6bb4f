// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/cuda/process.h"

#include <algorithm>
#include <cerrno>
#include <limits>
#include <thread>

#include "plugins/host/cancelled.h"
#include "plugins/host/deadline.h"

namespace checkpointd::cuda {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

// More than the driver needs to say that a lock's own timeout has passed, or what a state is.
constexpr milliseconds kAnswerTime{10000};
// What of that there is where a deadline passes: whoever kept that deadline ends us a few seconds later (job_steps.cc).
constexpr milliseconds kGrace{2000};

Process::Deadline answer_by(Process::Deadline deadline) {
    const auto now = Clock::now();
    return std::min(now + kAnswerTime, deadline_after(std::max(now, deadline), kGrace));
}

const char* name_of(Operation operation) {
    switch (operation) {
        case Operation::kLock: return "lock";
        case Operation::kCheckpoint: return "checkpoint";
        case Operation::kRestore: return "restore";
        case Operation::kUnlock: return "unlock";
        case Operation::kMapCheckpoint: return "map the device memory of";
        case Operation::kMapRestore: return "map device memory for";
        case Operation::kCopy: return "begin to copy the device memory of";
        case Operation::kComplete: return "complete the copy of";
        case Operation::kState: return "tell the state of";
        case Operation::kUsage: return "tell the device memory of";
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

// Names what takes too long.
Result<Answer> answer_of(Backend& backend, const Request& request, Process::Deadline deadline, int fd = -1) {
    auto answer = backend.ask(request, deadline, fd);
    if (answer || answer.error().kind != ErrorKind::kTimeout)
        return answer;
    return fail(ErrorKind::kTimeout, object_of(request.pid),
                fmt::format("the driver did not {} it in time", name_of(request.operation)));
}

std::string said(const Answer& answer) {
    if (answer.code < kSuccess)
        return answer.text;
    return answer.code == kSuccess ? "success" : fmt::format("{} ({})", answer.text, answer.code);
}

constexpr uint32_t kPollMs = 20;

uint32_t milliseconds_until(Process::Deadline deadline) {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - Clock::now()).count();
    return static_cast<uint32_t>(std::clamp<int64_t>(left, 0, std::numeric_limits<uint32_t>::max()));
}

std::vector<Region> regions_of(const Answer& answer) {
    std::vector<Region> regions;
    for (uint32_t i = 0; i < std::min(answer.device_count, kMaxDevices); ++i)
        regions.push_back({answer.devices[i].uuid, answer.devices[i].total_bytes, 0});
    return regions;
}

}  // namespace

Result<std::optional<Process>> Process::find(Backend& backend, pid_t pid, Deadline deadline) {
    CKPT_ASSIGN(Answer answer, backend.ask(request_for(Operation::kThread, pid), deadline));
    if (answer.code == kSuccess)
        return std::optional<Process>(Process(backend, pid, answer.value));
    if (answer.code == kInvalidValue || answer.code == kNotInitialized)
        return std::optional<Process>();
    return fail(ErrorKind::kSystem, object_of(pid), fmt::format("the driver does not tell whether it uses CUDA: {}", said(answer)),
                "see to the driver, or switch the plugin off (plugins: {cuda: no})");
}

Result<ProcessState> Process::state(Deadline deadline) const {
    CKPT_ASSIGN(Answer answer, answer_of(*backend_, request_for(Operation::kState, pid_), deadline));
    if (answer.code != kSuccess)
        return fail(ErrorKind::kSystem, object_of(pid_), fmt::format("its state cannot be had: {}", said(answer)));
    return static_cast<ProcessState>(answer.value);
}

Result<std::optional<std::vector<Region>>> Process::device_memory(Deadline deadline) const {
    CKPT_ASSIGN(const Answer answer, answer_of(*backend_, request_for(Operation::kUsage, pid_), deadline));
    return answer.code == kSuccess ? std::optional(regions_of(answer)) : std::nullopt;
}

// Where the driver says no and nothing seen from outside said it before.
static const char* remedy_for(Operation operation, int32_t code) {
    if (operation == Operation::kLock && code != kNotSupported)
        return "let its work on the device end, or raise plugins.cuda.lock-timeout";
    if (operation == Operation::kLock || operation == Operation::kCheckpoint || operation == Operation::kMapCheckpoint)
        return "most likely it uses managed memory (UVM), or memory shared between processes (IPC), which this driver cannot "
               "checkpoint: let it do without; IPC goes with driver 610 and cuda-checkpoint --launch-job";
    return "";
}

// A lock's own timeout has no code that all drivers, and the command, have in common.
static ErrorKind kind_of(Operation operation, int32_t code) {
    if (code == kNotSupported)
        return ErrorKind::kUnsupported;
    const bool is_late = code == kTimeout || (operation == Operation::kLock && code != kSuccess);
    return is_late ? ErrorKind::kTimeout : ErrorKind::kSystem;
}

Result<void> Process::make(Operation operation, ProcessState wanted, uint32_t timeout_ms,
                           const std::vector<GpuPair>& pairs, Deadline deadline) {
    Request request = request_for(operation, pid_);
    request.timeout_ms = timeout_ms;
    for (const GpuPair& pair : pairs)
        if (request.pair_count < kMaxDevices)
            request.pairs[request.pair_count++] = pair;
    auto answered = answer_of(*backend_, request, deadline);
    has_late_call_ |= !answered && answered.error().kind == ErrorKind::kTimeout;
    CKPT_ASSIGN(const Answer answer, std::move(answered));
    CKPT_ASSIGN(const ProcessState now, state(answer_by(deadline)));
    // Of what is mapped for a checkpoint it may tell a part only; a restore compares with what there is to restore.
    if (now == wanted && (operation != Operation::kMapCheckpoint || answer.code == kSuccess)) {
        regions_ = regions_of(answer);
        return {};
    }
    return fail(kind_of(operation, answer.code), object_of(pid_),
                fmt::format("the driver did not {} it: {}; it is {}", name_of(operation), said(answer), name_of(now)),
                remedy_for(operation, answer.code));
}

Result<void> Process::lock(milliseconds timeout, Deadline deadline) {
    touched_ = true;
    const auto left = std::chrono::ceil<milliseconds>(deadline - Clock::now());
    const auto most = std::clamp(timeout, milliseconds(1), std::max(left, milliseconds(1)));  // 0 is for ever
    return make(Operation::kLock, ProcessState::kLocked, static_cast<uint32_t>(most.count()), {},
                std::min(Clock::now() + most + kAnswerTime, deadline_after(deadline, kGrace)));
}

Result<void> Process::release_thread(const ckptd_host* host) {
    return host == nullptr ? Result<void>() : backend_->threads().run(*host, pid_, thread_);
}

Result<void> Process::hold_thread(Deadline deadline) { return backend_->threads().hold(pid_, answer_by(deadline)); }

// A call that goes on keeps its thread running: it would never end otherwise.
Result<void> Process::hold_after(Result<void> done, Deadline deadline) {
    if (!done && done.error().kind == ErrorKind::kTimeout)
        return done;
    auto held = hold_thread(deadline);
    CKPT_TRY(done);
    return held;
}

Result<void> Process::checkpoint(const ckptd_host& host, Deadline deadline) {
    lacks_contents_ = false;
    CKPT_TRY(release_thread(&host));
    return hold_after(make(Operation::kCheckpoint, ProcessState::kCheckpointed, 0, {}, deadline), deadline);
}

Result<std::vector<Region>> Process::map(const ckptd_host& host, Deadline deadline) {
    CKPT_TRY(release_thread(&host));
    expect_contents();
    auto made = make(Operation::kMapCheckpoint, ProcessState::kCheckpointing, milliseconds_until(deadline), {}, deadline);
    if (made)
        return regions_;
    CKPT_TRY(hold_after(std::move(made), deadline));
    return std::vector<Region>();
}

Result<Answer> Process::ask(const Request& request, Deadline deadline, int fd) const {
    CKPT_ASSIGN(Answer answer, answer_of(*backend_, request, deadline, fd));
    if (answer.code == kSuccess || answer.code == kNotReady)
        return answer;
    Error error{ErrorKind::kSystem, object_of(pid_), fmt::format("cannot {} it: {}", name_of(request.operation), said(answer)),
                {}, answer.errno_code, {}};
    return tl::unexpected(std::move(error));
}

Result<void> Process::copy(const Image& image, Deadline deadline) {
    Request request = request_for(Operation::kCopy, pid_);
    for (const Region& region : image.regions)
        if (request.region_count < kMaxDevices)
            request.regions[request.region_count++] = region;
    const auto begun = ask(request, deadline, image.fd);  // pieces of an earlier copy that are under way come to their end first
    has_late_call_ |= !begun && begun.error().kind == ErrorKind::kTimeout;
    CKPT_TRY(begun);
    return {};
}

Result<void> Process::copied(Deadline deadline, const Watch& watch) {
    Request request = request_for(Operation::kWait, pid_);
    request.timeout_ms = kPollMs;
    for (;;) {
        CKPT_ASSIGN(const Answer answer, ask(request, answer_by(deadline)));
        if (watch.progress)
            watch.progress(answer.bytes);
        if (answer.code == kSuccess)
            return {};
        if (Clock::now() >= deadline)
            return fail(ErrorKind::kTimeout, object_of(pid_), "its device memory is not copied in time");
        if (is_cancelled(watch.cancel_fd))
            return fail(ErrorKind::kCancelled, object_of(pid_), "copying its device memory was cancelled");
    }
}

Result<void> Process::finish(Deadline deadline) {
    CKPT_TRY(make(Operation::kComplete, ProcessState::kCheckpointed, 0, {}, deadline));
    return hold_thread(deadline);
}

// Of a helper that knows nothing of it: 0.
Result<int32_t> Process::held(Deadline deadline) const {
    CKPT_ASSIGN(const Answer answer, backend_->ask(request_for(Operation::kHeld, pid_), deadline));
    return answer.code == kSuccess ? answer.value : 0;
}

// Nothing takes back that it was mapped, and what is completed has left the device. So what the image does not have yet
// goes to the helper's memory first.
Result<void> Process::rescue(Deadline deadline) {
    CKPT_ASSIGN(const int32_t has, held(deadline));
    if ((has & kHeldCopied) == 0) {
        CKPT_TRY(copy({}, deadline));
        CKPT_TRY(copied(deadline));
    }
    return make(Operation::kComplete, ProcessState::kCheckpointed, 0, {}, deadline);
}

Result<void> Process::end_restore(const Image& image, Deadline deadline) {
    CKPT_ASSIGN(const int32_t has, held(deadline));
    if ((has & (kHeldCopying | kHeldCopied)) == 0)
        CKPT_TRY(copy((has & kHeldContents) != 0 ? Image() : image, deadline));
    CKPT_TRY(copied(deadline));
    return make(Operation::kComplete, ProcessState::kLocked, 0, {}, deadline);
}

Result<bool> Process::begin_restore(const ckptd_host* host, const std::vector<GpuPair>& device_map, const Image& image,
                                    Deadline deadline) {
    CKPT_ASSIGN(const int32_t has, held(deadline));
    if (image.fd < 0 && (has & kHeldContents) == 0)
        return false;
    CKPT_TRY(release_thread(host));
    CKPT_TRY(make(Operation::kMapRestore, ProcessState::kRestoring, milliseconds_until(deadline), device_map, deadline));
    CKPT_TRY(copy((has & kHeldContents) != 0 ? Image() : image, deadline));
    return true;
}

// Checkpointed to locked.
Result<void> Process::put_back(const ckptd_host* host, const std::vector<GpuPair>& device_map, const Image& image,
                               Deadline deadline) {
    CKPT_ASSIGN(const bool is_mapped, begin_restore(host, device_map, image, deadline));
    if (!is_mapped && lacks_contents_)
        return fail(ErrorKind::kSystem, object_of(pid_),
                    "what it had on devices is neither in a file of the image, whole, nor does the helper have it",
                    "restart the unit");
    return is_mapped ? end_restore(image, deadline)
                     : make(Operation::kRestore, ProcessState::kLocked, 0, device_map, deadline);
}

// Once nothing is under way any more that nobody here can bring to its end.
Result<ProcessState> Process::settled(Deadline deadline) {
    for (;;) {
        CKPT_ASSIGN(const ProcessState now, state(deadline));
        if (now != ProcessState::kCheckpointing && now != ProcessState::kRestoring)
            return now;
        CKPT_ASSIGN(const int32_t has, held(deadline));
        if ((has & kHeldMapped) != 0 || Clock::now() >= deadline)
            return now;
        std::this_thread::sleep_for(milliseconds(kPollMs));
    }
}

// Its thread runs until the end of this: no other sequence is known to work.
Result<void> Process::lead_back(const ckptd_host* host, const std::vector<GpuPair>& device_map, const Image& image,
                                Deadline deadline) {
    CKPT_ASSIGN(ProcessState now, settled(deadline));
    if (now == ProcessState::kRunning)
        return {};
    CKPT_TRY(release_thread(host));
    if (now == ProcessState::kCheckpointing) {
        expect_contents();
        CKPT_TRY(rescue(deadline));
        now = ProcessState::kCheckpointed;
    }
    if (now == ProcessState::kRestoring) {
        CKPT_TRY(end_restore(image, deadline));
        now = ProcessState::kLocked;
    }
    if (now == ProcessState::kCheckpointed) {
        CKPT_TRY(put_back(host, device_map, image, deadline));
        now = ProcessState::kLocked;
    }
    if (now != ProcessState::kLocked)
        return fail(ErrorKind::kSystem, object_of(pid_),
                    fmt::format("the driver says that it is {}", name_of(now)), "restart the unit");
    return make(Operation::kUnlock, ProcessState::kRunning, 0, {}, deadline);
}

Result<void> Process::bring_back(const ckptd_host* host, const std::vector<GpuPair>& device_map, const Image& image,
                                 Deadline deadline) {
    if (has_late_call_ && !backend_->finish_late(deadline))
        return fail(ErrorKind::kTimeout, object_of(pid_), "the driver still works on it");
    has_late_call_ = false;
    auto led = lead_back(host, device_map, image, deadline);
    if (led)
        touched_ = false;
    return hold_after(std::move(led), deadline);
}

}  // namespace checkpointd::cuda
