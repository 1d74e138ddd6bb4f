// SPDX-License-Identifier: LGPL-2.1-or-later
#include "units/systemd.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-bus.h>
#include <unistd.h>

#include "core/base/scoped_fd.h"

namespace checkpointd {
namespace {

constexpr const char* kService = "org.freedesktop.systemd1";
constexpr const char* kManagerPath = "/org/freedesktop/systemd1";
constexpr const char* kManager = "org.freedesktop.systemd1.Manager";
constexpr const char* kUnitPrefix = "/org/freedesktop/systemd1/unit";
constexpr const char* kPrivateBus = "unix:path=/run/systemd/private";
constexpr const char* kNotifySocket = "/run/systemd/notify";
constexpr uint64_t kReloadTimeoutUsec = 90'000'000;
constexpr uint64_t kMaxWaitUsec = 100'000;

struct BusDeleter {
    void operator()(sd_bus* bus) const { sd_bus_flush_close_unref(bus); }
};
struct MessageDeleter {
    void operator()(sd_bus_message* message) const { sd_bus_message_unref(message); }
};
struct SlotDeleter {
    void operator()(sd_bus_slot* slot) const { sd_bus_slot_unref(slot); }
};
using Bus = std::unique_ptr<sd_bus, BusDeleter>;
using Message = std::unique_ptr<sd_bus_message, MessageDeleter>;
using BusSlot = std::unique_ptr<sd_bus_slot, SlotDeleter>;

// Owns a D-Bus error while a call may fill it.
class BusError {
  public:
    BusError() = default;
    BusError(const BusError&) = delete;
    BusError& operator=(const BusError&) = delete;
    ~BusError() { sd_bus_error_free(&error_); }
    sd_bus_error* get() { return &error_; }

    tl::unexpected<Error> failure(std::string object, std::string_view step, int result) const {
        const char* text = error_.message ? error_.message : "the call failed";
        return tl::unexpected<Error>(Error{kind(), std::move(object),
                                           fmt::format("systemd cannot {}: {}", step, text),
                                           {}, -result, {}});
    }

  private:
    ErrorKind kind() const {
        std::string_view name = error_.name ? error_.name : "";
        if (name.ends_with(".NoSuchUnit") || name.ends_with(".UnknownObject") ||
            name.ends_with(".NoSuchJob"))
            return ErrorKind::kNotFound;
        if (name.ends_with(".InvalidArgs") || name.ends_with(".InvalidName"))
            return ErrorKind::kBadInput;
        if (name.ends_with(".AccessDenied") || name.ends_with(".InteractiveAuthorizationRequired"))
            return ErrorKind::kDenied;
        if (name.ends_with(".NoReply") || name.ends_with(".Timeout"))
            return ErrorKind::kTimeout;
        if (name.ends_with(".UnitMasked") || name.ends_with(".TransactionIsDestructive") ||
            name.ends_with(".OnlyByDependency"))
            return ErrorKind::kConflict;
        return ErrorKind::kSystem;
    }

    sd_bus_error error_ = SD_BUS_ERROR_NULL;
};

tl::unexpected<Error> bad_reply(const std::string& unit, const char* what, int result) {
    return fail_errno(unit, fmt::format("cannot read {} in systemd's answer", what), -result);
}

Result<std::string> unit_path(const std::string& unit) {
    char* path = nullptr;
    int r = sd_bus_path_encode(kUnitPrefix, unit.c_str(), &path);
    if (r < 0)
        return fail_errno(unit, "cannot make an object path", -r);
    std::string out = path;
    free(path);
    return out;
}

std::string interface_name(std::string_view interface) {
    return fmt::format("{}.{}", kService, interface);
}

Result<std::vector<std::string>> read_strings(sd_bus_message* message, const std::string& unit,
                                              const char* what) {
    std::vector<std::string> out;
    const char* item = nullptr;
    int r = sd_bus_message_enter_container(message, 'a', "s");
    while (r >= 0 && (r = sd_bus_message_read_basic(message, 's', &item)) > 0)
        out.emplace_back(item);
    if (r >= 0)
        r = sd_bus_message_exit_container(message);
    if (r < 0)
        return bad_reply(unit, what, r);
    return out;
}

// One element of a(sasasttttuii), see org.freedesktop.systemd1(5), ExecStartEx.
Result<ExecCommand> read_command(sd_bus_message* message, const std::string& unit) {
    ExecCommand out;
    const char* path = nullptr;
    int r = sd_bus_message_enter_container(message, 'r', "sasasttttuii");
    if (r < 0 || (r = sd_bus_message_read_basic(message, 's', &path)) < 0)
        return bad_reply(unit, "a command", r);
    out.path = path;
    CKPT_ASSIGN(out.argv, read_strings(message, unit, "a command"));
    CKPT_ASSIGN(out.flags, read_strings(message, unit, "a command"));
    uint64_t times[4];
    int32_t status = 0;
    r = sd_bus_message_read(message, "ttttuii", &times[0], &times[1], &times[2], &times[3], &out.pid,
                            &out.code, &status);
    if (r < 0 || (r = sd_bus_message_exit_container(message)) < 0)
        return bad_reply(unit, "a command", r);
    return out;
}

uint64_t usec_until(Deadline deadline) {
    auto left = std::chrono::duration_cast<std::chrono::microseconds>(
        deadline - std::chrono::steady_clock::now());
    return left.count() < 0 ? 0 : static_cast<uint64_t>(left.count());
}

}  // namespace

struct Systemd::Impl {
    Bus bus;
    BusSlot removed_match;
    // Jobs that we queued; the result is set when the job is gone.
    std::map<std::string, std::optional<std::string>> jobs;

    static int on_job_removed(sd_bus_message* message, void* self, sd_bus_error*) {
        uint32_t id = 0;
        const char *job = nullptr, *unit = nullptr, *result = nullptr;
        if (sd_bus_message_read(message, "uoss", &id, &job, &unit, &result) >= 0) {
            auto& jobs = static_cast<Impl*>(self)->jobs;
            if (auto found = jobs.find(job); found != jobs.end())
                found->second = result;
        }
        return 0;
    }

    Result<Message> property(const std::string& unit, std::string_view interface,
                             const char* property, const char* type) {
        CKPT_ASSIGN(std::string path, unit_path(unit));
        BusError error;
        sd_bus_message* reply = nullptr;
        int r = sd_bus_get_property(bus.get(), kService, path.c_str(),
                                    interface_name(interface).c_str(), property, error.get(), &reply,
                                    type);
        if (r < 0)
            return error.failure(unit, fmt::format("tell {}", property), r);
        return Message(reply);
    }

    Result<std::string> queue_job(const char* method, const std::string& unit, const char* mode) {
        BusError error;
        sd_bus_message* raw = nullptr;
        int r = sd_bus_call_method(bus.get(), kService, kManagerPath, kManager, method, error.get(),
                                   &raw, "ss", unit.c_str(), mode);
        if (r < 0)
            return error.failure(unit, method, r);
        Message reply(raw);
        return queued(unit, reply.get());
    }

    // Signals are dispatched in job_result() only, so this is in time for JobRemoved.
    Result<std::string> queued(const std::string& unit, sd_bus_message* reply) {
        const char* job = nullptr;
        if (int r = sd_bus_message_read(reply, "o", &job); r < 0)
            return bad_reply(unit, "the job", r);
        jobs.emplace(job, std::nullopt);
        return std::string(job);
    }

    // Dispatches what has arrived.
    Result<void> dispatch() {
        int r = 0;
        while ((r = sd_bus_process(bus.get(), nullptr)) > 0) {
        }
        if (r < 0)
            return fail_errno("D-Bus", "the connection to systemd is lost", -r);
        return {};
    }
};

Systemd::Systemd(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Systemd::Systemd(Systemd&&) noexcept = default;
Systemd& Systemd::operator=(Systemd&&) noexcept = default;
Systemd::~Systemd() = default;

static Result<Bus> open_private_bus() {
    sd_bus* raw = nullptr;
    int r = sd_bus_new(&raw);
    if (r < 0)
        return fail_errno("D-Bus", "cannot make a connection", -r);
    Bus bus(raw);
    if ((r = sd_bus_set_address(raw, kPrivateBus)) < 0 || (r = sd_bus_start(raw)) < 0)
        return fail_errno("D-Bus", "cannot reach systemd, neither by the system bus nor directly", -r);
    return bus;
}

Result<Systemd> Systemd::connect() {
    sd_bus* raw = nullptr;
    if (sd_bus_open_system(&raw) >= 0) {
        // Connected before anybody answers; while the system goes down nobody does.
        auto impl = std::make_unique<Impl>();
        impl->bus.reset(raw);
        if (auto systemd = watch(std::move(impl)))
            return systemd;
    }
    auto impl = std::make_unique<Impl>();
    CKPT_ASSIGN(impl->bus, open_private_bus());
    return watch(std::move(impl));
}

Result<Systemd> Systemd::watch(std::unique_ptr<Impl> impl) {
    // A direct connection has no names, so there is no sender to match.
    int is_bus = sd_bus_is_bus_client(impl->bus.get());
    sd_bus_slot* slot = nullptr;
    int r = sd_bus_match_signal(impl->bus.get(), &slot, is_bus > 0 ? kService : nullptr, kManagerPath,
                                kManager, "JobRemoved", Impl::on_job_removed, impl.get());
    if (r < 0)
        return fail_errno("systemd", "cannot watch its jobs", -r);
    impl->removed_match.reset(slot);
    BusError error;
    r = sd_bus_call_method(impl->bus.get(), kService, kManagerPath, kManager, "Subscribe",
                           error.get(), nullptr, "");
    if (r < 0)
        return error.failure("systemd", "subscribe us", r);
    return Systemd(std::move(impl));
}

Result<std::string> Systemd::load_unit(const std::string& name) {
    BusError error;
    sd_bus_message* raw = nullptr;
    int r = sd_bus_call_method(impl_->bus.get(), kService, kManagerPath, kManager, "LoadUnit",
                               error.get(), &raw, "s", name.c_str());
    if (r < 0)
        return error.failure(name, "load the unit", r);
    Message reply(raw);
    const char* path = nullptr;
    if ((r = sd_bus_message_read(reply.get(), "o", &path)) < 0)
        return bad_reply(name, "the unit's path", r);
    return std::string(path);
}

Result<bool> Systemd::is_loaded(const std::string& name) {
    BusError error;
    int r = sd_bus_call_method(impl_->bus.get(), kService, kManagerPath, kManager, "GetUnit", error.get(),
                               nullptr, "s", name.c_str());
    if (r >= 0)
        return true;
    auto failure = error.failure(name, "look for the unit", r);
    if (failure.value().kind == ErrorKind::kNotFound)
        return false;
    return tl::unexpected(std::move(failure).value());
}

Result<std::string> Systemd::text(const std::string& unit, std::string_view interface,
                                  const char* property) {
    CKPT_ASSIGN(Message reply, impl_->property(unit, interface, property, "s"));
    const char* value = nullptr;
    int r = sd_bus_message_read(reply.get(), "s", &value);
    if (r < 0)
        return bad_reply(unit, property, r);
    return std::string(value);
}

Result<uint64_t> Systemd::number(const std::string& unit, std::string_view interface,
                                 const char* property) {
    CKPT_ASSIGN(std::string path, unit_path(unit));
    BusError error;
    sd_bus_message* raw = nullptr;
    int r = sd_bus_call_method(impl_->bus.get(), kService, path.c_str(),
                               "org.freedesktop.DBus.Properties", "Get", error.get(), &raw, "ss",
                               interface_name(interface).c_str(), property);
    if (r < 0)
        return error.failure(unit, fmt::format("tell {}", property), r);
    Message reply(raw);
    const char* contents = nullptr;
    r = sd_bus_message_peek_type(reply.get(), nullptr, &contents);
    std::string_view type = r > 0 && contents ? contents : "";
    if (type != "u" && type != "t" && type != "i")
        return fail(ErrorKind::kInternal, unit, fmt::format("{} is not a number", property));
    if ((r = sd_bus_message_enter_container(reply.get(), 'v', contents)) < 0)
        return bad_reply(unit, property, r);
    uint32_t narrow = 0;
    uint64_t wide = 0;
    r = type == "t" ? sd_bus_message_read(reply.get(), "t", &wide)
                    : sd_bus_message_read_basic(reply.get(), contents[0], &narrow);
    if (r < 0)
        return bad_reply(unit, property, r);
    return type == "t" ? wide : narrow;
}

Result<bool> Systemd::boolean(const std::string& unit, std::string_view interface,
                              const char* property) {
    CKPT_ASSIGN(Message reply, impl_->property(unit, interface, property, "b"));
    int value = 0;
    int r = sd_bus_message_read(reply.get(), "b", &value);
    if (r < 0)
        return bad_reply(unit, property, r);
    return value != 0;
}

Result<std::vector<std::string>> Systemd::list(const std::string& unit, std::string_view interface,
                                               const char* property) {
    CKPT_ASSIGN(Message reply, impl_->property(unit, interface, property, "as"));
    return read_strings(reply.get(), unit, property);
}

Result<std::vector<ExecCommand>> Systemd::commands(const std::string& unit, const char* property) {
    std::string name = fmt::format("{}Ex", property);
    CKPT_ASSIGN(Message reply,
                impl_->property(unit, "Service", name.c_str(), "a(sasasttttuii)"));
    std::vector<ExecCommand> out;
    int r = sd_bus_message_enter_container(reply.get(), 'a', "(sasasttttuii)");
    if (r < 0)
        return bad_reply(unit, property, r);
    while (!sd_bus_message_at_end(reply.get(), 0)) {
        CKPT_ASSIGN(ExecCommand command, read_command(reply.get(), unit));
        out.push_back(std::move(command));
    }
    return out;
}

Result<bool> Systemd::has_call_filter(const std::string& unit) {
    constexpr const char* kFilter = "SystemCallFilter";
    CKPT_ASSIGN(Message reply, impl_->property(unit, "Service", kFilter, "(bas)"));
    int allows = 0;
    int r = sd_bus_message_enter_container(reply.get(), 'r', "bas");
    if (r >= 0)
        r = sd_bus_message_read(reply.get(), "b", &allows);
    if (r < 0)
        return bad_reply(unit, kFilter, r);
    CKPT_ASSIGN(auto calls, read_strings(reply.get(), unit, kFilter));
    return allows != 0 || !calls.empty();
}

Result<std::string> Systemd::system_state() {
    BusError error;
    char* state = nullptr;
    int r = sd_bus_get_property_string(impl_->bus.get(), kService, kManagerPath, kManager, "SystemState",
                                       error.get(), &state);
    if (r < 0)
        return error.failure("systemd", "tell SystemState", r);
    std::string out = state;
    free(state);
    return out;
}

Result<std::vector<std::string>> Systemd::running_services() {
    BusError error;
    sd_bus_message* raw = nullptr;
    int r = sd_bus_call_method(impl_->bus.get(), kService, kManagerPath, kManager, "ListUnitsByPatterns",
                               error.get(), &raw, "asas", 3, "active", "activating", "reloading", 1, "*.service");
    if (r < 0)
        return error.failure("systemd", "list units", r);
    Message reply(raw);
    std::vector<std::string> out;
    r = sd_bus_message_enter_container(raw, 'a', "(ssssssouso)");
    while (r >= 0 && (r = sd_bus_message_enter_container(raw, 'r', "ssssssouso")) > 0) {
        const char* name = nullptr;
        if ((r = sd_bus_message_read(raw, "s", &name)) < 0 || (r = sd_bus_message_skip(raw, "sssssouso")) < 0)
            break;
        out.emplace_back(name);
        r = sd_bus_message_exit_container(raw);
    }
    if (r < 0)
        return bad_reply("systemd", "the units", r);
    return out;
}

Result<bool> Systemd::has_job(const std::string& unit) {
    CKPT_ASSIGN(Message reply, impl_->property(unit, "Unit", "Job", "(uo)"));
    uint32_t id = 0;
    const char* path = nullptr;
    int r = sd_bus_message_read(reply.get(), "(uo)", &id, &path);
    if (r < 0)
        return bad_reply(unit, "Job", r);
    return id != 0;
}

Result<std::string> Systemd::start_unit(const std::string& unit, const char* mode) {
    return impl_->queue_job("StartUnit", unit, mode);
}

Result<std::string> Systemd::stop_unit(const std::string& unit, const char* mode) {
    return impl_->queue_job("StopUnit", unit, mode);
}

Result<std::string> Systemd::restart_unit(const std::string& unit, const char* mode) {
    return impl_->queue_job("RestartUnit", unit, mode);
}

static int append_text(sd_bus_message* call, const char* name, const std::string& value) {
    return value.empty() ? 0 : sd_bus_message_append(call, "(sv)", name, "s", value.c_str());
}

static int append_properties(sd_bus_message* call, const TransientUnit& unit) {
    int r = 0;
    if ((r = sd_bus_message_append(call, "ss", unit.name.c_str(), "fail")) < 0 ||
        (r = sd_bus_message_open_container(call, 'a', "(sv)")) < 0 ||
        (r = append_text(call, "Description", unit.description)) < 0 ||
        (r = append_text(call, "Slice", unit.slice)) < 0 ||
        (r = append_text(call, "Controller", unit.controller)) < 0)
        return r;
    if (!unit.processes.empty()) {
        if ((r = sd_bus_message_open_container(call, 'r', "sv")) < 0 ||
            (r = sd_bus_message_append(call, "s", "PIDs")) < 0 ||
            (r = sd_bus_message_open_container(call, 'v', "au")) < 0 ||
            (r = sd_bus_message_append_array(call, 'u', unit.processes.data(),
                                             unit.processes.size() * sizeof(uint32_t))) < 0 ||
            (r = sd_bus_message_close_container(call)) < 0 ||
            (r = sd_bus_message_close_container(call)) < 0)
            return r;
    }
    if ((r = sd_bus_message_close_container(call)) < 0)
        return r;
    return sd_bus_message_append(call, "a(sa(sv))", 0);
}

Result<std::string> Systemd::start_transient_unit(const TransientUnit& unit) {
    sd_bus_message* raw = nullptr;
    int r = sd_bus_message_new_method_call(impl_->bus.get(), &raw, kService, kManagerPath, kManager,
                                           "StartTransientUnit");
    Message call(raw);
    if (r < 0 || (r = append_properties(call.get(), unit)) < 0)
        return fail_errno(unit.name, "cannot ask systemd for a transient unit", -r);
    BusError error;
    sd_bus_message* answer = nullptr;
    r = sd_bus_call(impl_->bus.get(), call.get(), 0, error.get(), &answer);
    if (r < 0)
        return error.failure(unit.name, "start the transient unit", r);
    Message reply(answer);
    return impl_->queued(unit.name, reply.get());
}

Result<std::optional<std::string>> Systemd::job_result(const std::string& job) {
    auto found = impl_->jobs.find(job);
    if (found == impl_->jobs.end())
        return fail(ErrorKind::kInternal, job, "is not a job of ours");
    CKPT_TRY(impl_->dispatch());
    return found->second;
}

Result<std::string> Systemd::wait_job(const std::string& job, Deadline deadline) {
    for (;;) {
        CKPT_ASSIGN(auto result, job_result(job));
        if (result) {
            impl_->jobs.erase(job);
            return *result;
        }
        uint64_t left = usec_until(deadline);
        if (left == 0)
            return fail(ErrorKind::kTimeout, job, "systemd did not finish the job in time");
        int r = sd_bus_wait(impl_->bus.get(), std::min(left, kMaxWaitUsec));
        if (r < 0 && r != -EINTR)
            return fail_errno("D-Bus", "cannot wait for systemd", -r);
    }
}

Result<void> Systemd::reload() {
    sd_bus_message* raw = nullptr;
    int r = sd_bus_message_new_method_call(impl_->bus.get(), &raw, kService, kManagerPath, kManager,
                                           "Reload");
    if (r < 0)
        return fail_errno("systemd", "cannot make the reload call", -r);
    Message call(raw);
    BusError error;
    r = sd_bus_call(impl_->bus.get(), call.get(), kReloadTimeoutUsec, error.get(), nullptr);
    if (r < 0)
        return error.failure("systemd", "reload its configuration", r);
    return {};
}

Result<void> Systemd::reset_failed(const std::string& unit) {
    BusError error;
    int r = sd_bus_call_method(impl_->bus.get(), kService, kManagerPath, kManager, "ResetFailedUnit",
                               error.get(), nullptr, "s", unit.c_str());
    if (r >= 0)
        return {};
    auto failure = error.failure(unit, "reset its failed state", r);
    if (failure.value().kind == ErrorKind::kNotFound)
        return {};
    return failure;
}

Result<void> Systemd::stop_and_forget(const std::string& unit, Deadline deadline) {
    auto job = stop_unit(unit, "ignore-dependencies");
    if (job)
        CKPT_TRY(wait_job(*job, deadline));
    else if (job.error().kind != ErrorKind::kNotFound)
        return tl::unexpected(std::move(job).error());
    return reset_failed(unit);
}

Result<void> notify_as(int sender, std::string_view state) {
    // Not sd_pid_notify(3): that takes the socket from our own environment, which may lead elsewhere.
    ScopedFd fd(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    if (!fd)
        return fail_errno(kNotifySocket, "cannot make a socket");
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, kNotifySocket, sizeof(address.sun_path) - 1);
    iovec data = {const_cast<char*>(state.data()), state.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(ucred))] = {};
    msghdr message = {};
    message.msg_name = &address;
    message.msg_namelen = sizeof(address);
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_CREDENTIALS;
    header->cmsg_len = CMSG_LEN(sizeof(ucred));
    ucred credentials = {sender, getuid(), getgid()};
    std::memcpy(CMSG_DATA(header), &credentials, sizeof(credentials));
    if (sendmsg(fd.get(), &message, MSG_NOSIGNAL) < 0)
        return fail_errno(fmt::format("pid {}", sender), "cannot notify systemd in its name");
    return {};
}

}  // namespace checkpointd
