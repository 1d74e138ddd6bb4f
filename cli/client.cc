// SPDX-License-Identifier: LGPL-2.1-or-later
#include "cli/client.h"

#include <poll.h>
#include <set>

#include <nlohmann/json.hpp>

#include "dbus/compat.h"
#include "org.checkpointd1.Job.proxy.h"
#include "org.checkpointd1.Manager.proxy.h"

namespace checkpointd::cli {
namespace {

using json = nlohmann::json;

// Long enough for somebody to be asked for a password.
constexpr std::chrono::minutes kCallTimeout{4};

// The manager; remembers which jobs ended, because a job may be over before its method has answered.
class ManagerProxy final : public sdbus::ProxyInterfaces<org::checkpointd1::Manager_proxy> {
  public:
    explicit ManagerProxy(bus::Connection& connection)
        : ProxyInterfaces(connection, bus::ServiceName{bus::kService},
                          sdbus::ObjectPath{bus::kManagerPath}) {
        registerProxy();
    }
    ~ManagerProxy() { unregisterProxy(); }
    ManagerProxy(const ManagerProxy&) = delete;
    ManagerProxy& operator=(const ManagerProxy&) = delete;

    std::set<std::string> ended;

  private:
    void onJobNew(const uint32_t&, const sdbus::ObjectPath&, const std::string&) override {}
    void onJobRemoved(const uint32_t&, const sdbus::ObjectPath& job, const std::string&,
                      const std::string&) override {
        ended.insert(job);
    }
};

json to_json(const sdbus::Variant& value) {
    const std::string type = value.peekValueType();
    if (type == "s") return value.get<std::string>();
    if (type == "b") return value.get<bool>();
    if (type == "u") return value.get<uint32_t>();
    if (type == "t") return value.get<uint64_t>();
    if (type == "d") return value.get<double>();
    if (type != "a{sv}") return nullptr;
    json object = json::object();
    for (const auto& [key, inner] : value.get<bus::VariantMap>()) object[key] = to_json(inner);
    return object;
}

json to_json(const bus::VariantMap& map) {
    json object = json::object();
    for (const auto& [key, value] : map) object[key] = to_json(value);
    return object;
}

bus::VariantMap to_bus(const CallOptions& options) {
    bus::VariantMap map;
    if (options.mode) map["mode"] = bus::variant(*options.mode);
    if (options.sync) map["sync"] = bus::variant(*options.sync);
    if (options.timeout_usec) map["timeout"] = bus::variant(*options.timeout_usec);
    if (options.fault) map["x-fault"] = bus::variant(*options.fault);
    return map;
}

void update(JobView& view, const json& properties) {
    view.state = properties.value("State", view.state);
    view.phase = properties.value("Phase", view.phase);
    view.progress = properties.value("Progress", view.progress);
    view.bytes = properties.value("Bytes", view.bytes);
    view.bytes_total = properties.value("BytesTotal", view.bytes_total);
}

bool is_final(const std::string& state) {
    return state == "done" || state == "failed" || state == "cancelled" || state == "timeout";
}

template <typename F>
auto call(F&& method) {
    return bus::guard(bus::kService, std::forward<F>(method));
}

}  // namespace

struct Client::Impl {
    std::unique_ptr<bus::Connection> connection;
    std::unique_ptr<ManagerProxy> manager;

    std::unique_ptr<sdbus::IProxy> watch_job(const std::string& path, JobView& view, bool& news);
    json job_properties(sdbus::IProxy& job);
    // Waits for the bus or for `interrupt_fd`; true when the latter is readable.
    bool wait_for_events(int interrupt_fd);
};

Client::Client(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Client::Client(Client&&) noexcept = default;
Client::~Client() = default;

Result<Client> Client::connect() {
    return call([] {
        auto impl = std::make_unique<Impl>();
        impl->connection = bus::open_system();
        impl->connection->setMethodCallTimeout(kCallTimeout);
        impl->manager = std::make_unique<ManagerProxy>(*impl->connection);
        return Client(std::move(impl));
    });
}

Result<std::string> Client::checkpoint(const std::string& unit, const CallOptions& options) {
    return call([&] { return std::string(impl_->manager->CheckpointUnit(unit, to_bus(options))); });
}

Result<std::string> Client::restore(const std::string& target, const CallOptions& options) {
    return call([&] { return std::string(impl_->manager->RestoreUnit(target, to_bus(options))); });
}

Result<void> Client::enable(const std::string& unit) {
    return call([&] { impl_->manager->EnableUnit(unit); });
}

Result<void> Client::disable(const std::string& unit) {
    return call([&] { impl_->manager->DisableUnit(unit); });
}

Result<json> Client::units() {
    return call([&] {
        json rows = json::array();
        for (const auto& row : impl_->manager->ListUnits())
            rows.push_back({{"Unit", std::get<0>(row)},
                            {"Enabled", std::get<1>(row)},
                            {"Image", std::get<2>(row)}});
        return rows;
    });
}

Result<json> Client::images() {
    return call([&] {
        json rows = json::array();
        for (const auto& row : impl_->manager->ListImages())
            rows.push_back({{"Id", std::get<0>(row)},
                            {"Unit", std::get<1>(row)},
                            {"State", std::get<2>(row)},
                            {"CreatedUsec", std::get<3>(row)},
                            {"Bytes", std::get<4>(row)},
                            {"FrozenUsec", std::get<5>(row)}});
        return rows;
    });
}

Result<json> Client::image(const std::string& id) {
    return call([&] { return to_json(impl_->manager->GetImage(id)); });
}

Result<void> Client::remove(const std::string& id, bool force) {
    bus::VariantMap options;
    if (force) options["force"] = bus::variant(true);
    return call([&] { impl_->manager->RemoveImage(id, options); });
}

Result<std::string> Client::explain(const std::string& id) {
    return call([&] { return impl_->manager->ExplainImage(id); });
}

Result<json> Client::jobs() {
    return call([&] {
        json rows = json::array();
        for (const auto& row : impl_->manager->ListJobs())
            rows.push_back({{"Id", std::get<0>(row)},
                            {"Type", std::get<1>(row)},
                            {"Unit", std::get<2>(row)},
                            {"State", std::get<3>(row)},
                            {"Phase", std::get<4>(row)},
                            {"Progress", std::get<5>(row)},
                            {"Path", std::string(std::get<6>(row))}});
        return rows;
    });
}

Result<void> Client::cancel(const std::string& job_path) {
    return call([&] {
        auto job = bus::make_proxy(*impl_->connection, bus::kService, job_path);
        job->callMethod("Cancel").onInterface("org.checkpointd1.Job");
    });
}

Result<std::string> Client::policy(const std::string& unit) {
    return call([&] { return impl_->manager->ShowPolicy(unit); });
}

Result<void> Client::reload_policy() {
    return call([&] { impl_->manager->ReloadPolicy(); });
}

std::unique_ptr<sdbus::IProxy> Client::Impl::watch_job(const std::string& path, JobView& view,
                                                       bool& news) {
    auto job = bus::make_proxy(*connection, bus::kService, path);
    job->uponSignal("PropertiesChanged")
        .onInterface("org.freedesktop.DBus.Properties")
        .call([&view, &news](const std::string&, const bus::VariantMap& changed,
                             const std::vector<std::string>&) {
            update(view, to_json(changed));
            news = true;
        });
    bus::finish(*job);
    return job;
}

json Client::Impl::job_properties(sdbus::IProxy& job) {
    bus::VariantMap properties;
    job.callMethod("GetAll")
        .onInterface("org.freedesktop.DBus.Properties")
        .withArguments(std::string("org.checkpointd1.Job"))
        .storeResultsTo(properties);
    return to_json(properties);
}

bool Client::Impl::wait_for_events(int interrupt_fd) {
    const bus::PollData data = bus::poll_data(*connection);
    pollfd fds[] = {{data.fd, data.events, 0}, {data.event_fd, POLLIN, 0}, {interrupt_fd, POLLIN, 0}};
    poll(fds, 3, 1000);  // now and then also without news, in case the daemon was started anew
    while (bus::process_pending(*connection)) {
    }
    return fds[2].revents != 0;
}

Result<json> Client::wait(const std::string& job_path,
                          const std::function<void(const JobView&)>& changed, int interrupt_fd,
                          const std::function<void()>& interrupted) {
    return call([&] {
        JobView view;
        bool news = true;
        auto job = impl_->watch_job(job_path, view, news);
        update(view, impl_->job_properties(*job));  // what happened before we listened
        while (!is_final(view.state)) {
            if (std::exchange(news, false)) changed(view);
            if (impl_->wait_for_events(interrupt_fd)) interrupted();
            if (!news) update(view, impl_->job_properties(*job));
        }
        changed(view);
        return impl_->job_properties(*job);
    });
}

std::string job_path(uint32_t id) { return bus::kJobPathPrefix + std::to_string(id); }

}  // namespace checkpointd::cli
