// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The gate of a unit that has an image (units/gate.h says what for). PID 1 runs it before the unit. It asks
// the daemon to revive the unit and waits for the worker's word. It always leaves in the end, and its exit
// status does not matter. If the unit starts cold it notes that its image is out of date.
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <sys/signalfd.h>
#include <systemd/sd-bus.h>
#include <systemd/sd-journal.h>
#include <poll.h>
#include <unistd.h>

#include <fmt/format.h>

#include "config/policy/policy.h"
#include "core/base/scoped_fd.h"
#include "images/image_store.h"
#include "units/drop_in.h"
#include "units/gate.h"
#include "units/systemd.h"
#include "units/undo.h"

namespace checkpointd {
namespace {

constexpr const char* kService = "org.checkpointd1";
constexpr const char* kManagerPath = "/org/checkpointd1";
constexpr const char* kManager = "org.checkpointd1.Manager";
constexpr uint64_t kSecond = 1000000;
// The daemon has to be started for the first call, on a host that is busy booting.
constexpr uint64_t kCallTimeout = 25 * kSecond;
constexpr int kCalls = 5;
constexpr useconds_t kBetweenCalls = 200000;
// PID 1 fails a unit whose start takes longer than TimeoutStartSec=; a cold start is better.
constexpr uint64_t kLongestWait = 300 * kSecond;
// Once the job has failed its undo tells the gate why; it needs a moment, and may have died.
constexpr uint64_t kGraceAfterFailure = 5 * kSecond;

struct BusDeleter {
    void operator()(sd_bus* bus) const { sd_bus_close_unref(bus); }
};
using Bus = std::unique_ptr<sd_bus, BusDeleter>;

uint64_t now_usec() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<uint64_t>(now.tv_sec) * kSecond + static_cast<uint64_t>(now.tv_nsec) / 1000;
}

// How it ended: nullopt when the stage is laid out, otherwise why the unit starts cold.
using Verdict = std::optional<std::string>;

class Gate {
  public:
    explicit Gate(std::string unit) : unit_(std::move(unit)) {}
    Verdict wait();

  private:
    Verdict clear_stage();
    Verdict connect();
    Verdict ask();
    Verdict listen();
    void read_start_timeout();
    std::optional<Verdict> read_signal();
    static int on_job_removed(sd_bus_message* message, void* self, sd_bus_error*);

    std::string unit_;
    ScopedFd signals_;
    Bus bus_;
    uint64_t deadline_ = 0;
    std::optional<std::string> failure_;  // of the job
};

Verdict Gate::connect() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, kGateStaged);
    sigaddset(&set, kGateCold);
    sigprocmask(SIG_BLOCK, &set, nullptr);
    signals_.reset(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
    sd_bus* bus = nullptr;
    if (!signals_ || sd_bus_open_system(&bus) < 0) return "the system bus cannot be reached";
    bus_.reset(bus);
    sd_bus_match_signal(bus, nullptr, kService, kManagerPath, kManager, "JobRemoved", on_job_removed, this);
    return std::nullopt;
}

int Gate::on_job_removed(sd_bus_message* message, void* self, sd_bus_error*) {
    auto& gate = *static_cast<Gate*>(self);
    uint32_t id = 0;
    const char *job = nullptr, *unit = nullptr, *result = nullptr;
    if (sd_bus_message_read(message, "uoss", &id, &job, &unit, &result) < 0) return 0;
    if (gate.unit_ != unit || std::string_view(result) == "done" || gate.failure_) return 0;
    gate.failure_ = fmt::format("the restore by job {} ended: {}", id, result);
    gate.deadline_ = std::min(gate.deadline_, now_usec() + kGraceAfterFailure);
    return 0;
}

void Gate::read_start_timeout() {
    char* path = nullptr;
    uint64_t timeout = 0;
    if (sd_bus_path_encode("/org/freedesktop/systemd1/unit", unit_.c_str(), &path) >= 0)
        sd_bus_get_property_trivial(bus_.get(), "org.freedesktop.systemd1", path,
                                    "org.freedesktop.systemd1.Service", "TimeoutStartUSec", nullptr, 't',
                                    &timeout);
    free(path);
    deadline_ = now_usec() + (timeout == 0 ? kLongestWait : std::min(kLongestWait, timeout / 5 * 4));
}

// Asked again when the daemon ends in between: it may have died, or left because it was idle.
Verdict Gate::ask() {
    for (int calls = 1;; ++calls) {
        sd_bus_message *call = nullptr, *reply = nullptr;
        sd_bus_error error = SD_BUS_ERROR_NULL;
        sd_bus_message_new_method_call(bus_.get(), &call, kService, kManagerPath, kManager, "ReviveUnit");
        int r = sd_bus_message_append(call, "s", unit_.c_str());
        if (r >= 0) r = sd_bus_call(bus_.get(), call, kCallTimeout, &error, &reply);
        sd_bus_message_unref(call);
        sd_bus_message_unref(reply);
        const bool is_refused = sd_bus_error_is_set(&error) &&
                                std::string_view(error.name).starts_with("org.checkpointd1.");
        const bool is_passing = sd_bus_error_has_name(&error, SD_BUS_ERROR_NO_REPLY) ||
                                sd_bus_error_has_name(&error, SD_BUS_ERROR_DISCONNECTED);
        const std::string text = error.message ? error.message : "the call failed";
        sd_bus_error_free(&error);
        if (r >= 0) return std::nullopt;
        if (is_refused) return text;
        if (!is_passing || calls == kCalls || now_usec() > deadline_)
            return "checkpointd cannot be reached: " + text;
        usleep(kBetweenCalls);
    }
}

std::optional<Verdict> Gate::read_signal() {
    signalfd_siginfo info{};
    if (read(signals_.get(), &info, sizeof(info)) != sizeof(info)) return std::nullopt;
    if (static_cast<int>(info.ssi_signo) == kGateStaged) return Verdict();
    return Verdict(take_cold_note(unit_).value_or("the restore failed"));
}

Verdict Gate::listen() {
    for (;;) {
        while (sd_bus_process(bus_.get(), nullptr) > 0) {
        }
        if (auto verdict = read_signal()) return *verdict;
        const uint64_t now = now_usec();
        if (now >= deadline_) return failure_.value_or("nobody came to restore it in time");
        pollfd fds[] = {{sd_bus_get_fd(bus_.get()), POLLIN, 0}, {signals_.get(), POLLIN, 0}};
        if (fds[0].fd < 0) fds[0].events = 0;  // a lost bus: the worker may still come
        poll(fds, 2, static_cast<int>(std::min<uint64_t>((deadline_ - now) / 1000 + 1, 1000)));
    }
}

// What a job that died has left, and whoever undoes jobs as well. Nobody works on a unit at its gate before we ask.
Verdict Gate::clear_stage() {
    if (access(drop_in_path(kRuntimeUnitDir, unit_).c_str(), F_OK) != 0) return std::nullopt;
    auto systemd = Systemd::connect();
    auto cleared = systemd ? remove_drop_in(*systemd, unit_) : tl::unexpected(std::move(systemd).error());
    return "a restore before was cut off" + (cleared ? std::string() : ": " + cleared.error().line());
}

Verdict Gate::wait() {
    const auto left_over = clear_stage();
    if (auto note = take_cold_note(unit_)) return note;
    if (left_over) return left_over;
    if (auto failed = connect()) return failed;
    read_start_timeout();
    if (auto refused = ask()) return refused;
    return listen();
}

// From now on the image is older than the unit's own state.
Result<unsigned> mark_stale(const std::string& unit, const std::string& reason) {
    auto policy = load_policy(kVendorPolicyDir, kAdminPolicyDir);
    if (policy && policy->for_unit(unit).reuse) return 0U;
    CKPT_ASSIGN(auto store, images::ImageStore::open(images::kDefaultStoreRoot, false));
    CKPT_ASSIGN(auto all, store.list(unit));
    unsigned marked = 0;
    for (const images::StoredImage& image : all) {
        if (image.damage || image.state != images::ImageState::kReady) continue;
        if (!is_start_image(image.info.mode, false)) continue;  // older than the unit's state from the start
        CKPT_TRY(store.set_state(image.id, images::ImageState::kStale, "the unit was started cold: " + reason));
        ++marked;
    }
    return marked;
}

// Not by standard output, which is the unit's and may lead anywhere.
void log(int priority, const std::string& text) { sd_journal_print(priority, "%s", text.c_str()); }

void pass(const std::string& unit) {
    auto cold = Gate(unit).wait();
    if (!cold) return log(LOG_INFO, fmt::format("{}: restoring it from its image", unit));
    auto marked = mark_stale(unit, *cold);
    if (!marked) log(LOG_WARNING, marked.error().line());
    log(LOG_NOTICE, fmt::format("{}: cold start: {}", unit, *cold));
}

}  // namespace
}  // namespace checkpointd

int main(int argc, char** argv) {
    if (argc == 2 && checkpointd::is_valid_unit_name(argv[1])) checkpointd::pass(argv[1]);
    return EXIT_SUCCESS;
}
