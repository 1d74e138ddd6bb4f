// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The API as a client sees it, on a private bus: real dbus-daemon, real manager, workers that do what the
// test says.
#include <csignal>
#include <condition_variable>
#include <fstream>
#include <mutex>
#include <regex>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include <gtest/gtest.h>

#include "org.checkpointd1.Job.proxy.h"
#include "org.checkpointd1.Manager.proxy.h"
#include "service/bus/manager_object.h"
#include "service/test_fakes.h"

namespace checkpointd {
namespace {

using test::bad_result;
using test::good_result;

// A bus of our own, ended with the test however that ends.
class PrivateBus {
  public:
    explicit PrivateBus(const std::string& dir) {
        const std::string config = dir + "/bus.conf";
        std::ofstream(config) << "<busconfig><type>custom</type><listen>unix:path=" << dir
                              << "/bus</listen><auth>EXTERNAL</auth><policy context=\"default\">"
                                 "<allow user=\"*\"/><allow own=\"*\"/><allow send_destination=\"*\"/>"
                                 "<allow eavesdrop=\"true\"/></policy></busconfig>";
        int listens[2];  // it prints its address when it can be reached, later than the socket's file is there
        EXPECT_EQ(pipe(listens), 0);
        pid_ = fork();
        if (pid_ == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            const std::string option = "--config-file=" + config;
            const std::string address = "--print-address=" + std::to_string(listens[1]);
            execlp("dbus-daemon", "dbus-daemon", option.c_str(), address.c_str(), "--nofork", nullptr);
            _exit(127);
        }
        close(listens[1]);
        char byte;
        EXPECT_EQ(read(listens[0], &byte, 1), 1) << "dbus-daemon has not started";
        close(listens[0]);
        setenv("DBUS_SYSTEM_BUS_ADDRESS", ("unix:path=" + dir + "/bus").c_str(), 1);
    }
    PrivateBus(const PrivateBus&) = delete;
    PrivateBus& operator=(const PrivateBus&) = delete;
    ~PrivateBus() {
        kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
    }

  private:
    pid_t pid_;
};

// The daemon's inside in a thread of its own; run() lets the test act in that thread.
class Server {
  public:
    explicit Server(const std::string& dir) : config_(test::test_config(dir)) {
        thread_ = std::thread([this] { serve(); });
        run([] {});
    }
    Server(const Server&) = delete;
    Server& operator=(const Server&) = delete;
    ~Server() {
        run([this] { loop_.stop(); stopped_ = true; });
        thread_.join();
    }

    void run(std::function<void()> action) {
        std::unique_lock lock(mutex_);
        action_ = std::move(action);
        done_.wait(lock, [this] { return !action_; });
    }

    test::FakeWorkers workers;
    test::FakeHelpers helpers;
    test::FakeImages images;
    Manager* manager = nullptr;

  private:
    void serve() {
        auto connection = bus::open_system();
        Manager manager_here(config_, loop_, workers, helpers, images);
        ManagerObject object(*connection, manager_here, "1.2.3");
        EXPECT_TRUE(manager_here.start());
        manager = &manager_here;
        loop_.set_source(
            [&](std::vector<pollfd>& fds, uint64_t& deadline) {
                const bus::PollData data = bus::poll_data(*connection);
                fds.push_back({data.fd, data.events, 0});
                if (data.event_fd >= 0) fds.push_back({data.event_fd, POLLIN, 0});
                deadline = std::min(deadline, data.deadline_usec);
            },
            [&] {
                while (bus::process_pending(*connection)) {
                }
            });
        bus::request_name(*connection, bus::kService);
        while (!stopped_) {
            EXPECT_TRUE(loop_.run_once(std::chrono::milliseconds(5)));
            perform();
        }
    }
    void perform() {
        std::lock_guard lock(mutex_);
        if (!action_) return;
        action_();
        action_ = nullptr;
        done_.notify_all();
    }

    ManagerConfig config_;
    EventLoop loop_;
    std::mutex mutex_;
    std::condition_variable done_;
    std::function<void()> action_;
    bool stopped_ = false;
    std::thread thread_;
};

class ManagerClient : public sdbus::ProxyInterfaces<org::checkpointd1::Manager_proxy,
                                                    sdbus::Introspectable_proxy> {
  public:
    explicit ManagerClient(bus::Connection& connection, std::vector<std::string>& log)
        : ProxyInterfaces(connection, bus::ServiceName{bus::kService},
                          sdbus::ObjectPath{bus::kManagerPath}),
          log_(log) {
        registerProxy();
    }
    ~ManagerClient() { unregisterProxy(); }

  private:
    void onJobNew(const uint32_t& id, const sdbus::ObjectPath& job, const std::string& unit) override {
        log_.push_back("JobNew " + std::to_string(id) + " " + job + " " + unit);
    }
    void onJobRemoved(const uint32_t& id, const sdbus::ObjectPath&, const std::string& unit,
                      const std::string& result) override {
        log_.push_back("JobRemoved " + std::to_string(id) + " " + unit + " " + result);
    }
    std::vector<std::string>& log_;
};

class BusTest : public ::testing::Test {
  protected:
    void SetUp() override {
        bus_ = std::make_unique<PrivateBus>(dir_.path());
        server_ = std::make_unique<Server>(dir_.path());
        connection_ = bus::open_system();
        manager_ = std::make_unique<ManagerClient>(*connection_, log_);
    }
    // The name and text of the error that `call` ends with.
    template <typename F>
    std::string error_of(F call) {
        try {
            call();
        } catch (const sdbus::Error& error) {
            return std::string(error.getName()) + ": " + error.getMessage();
        }
        return "no error";
    }
    std::unique_ptr<sdbus::IProxy> job(const std::string& path) {
        auto proxy = bus::make_proxy(*connection_, bus::kService, path);
        proxy->uponSignal("PropertiesChanged")
            .onInterface("org.freedesktop.DBus.Properties")
            .call([this](const std::string&, const bus::VariantMap& changed,
                         const std::vector<std::string>&) {
                std::string line = "PropertiesChanged";
                for (const auto& [key, value] : changed) {
                    line += " " + key;
                    if (key == "State") line += "=" + value.get<std::string>();
                }
                log_.push_back(line);
            });
        bus::finish(*proxy);
        return proxy;
    }
    void receive_until(const std::string& prefix) {
        for (int i = 0; i < 6000; ++i) {
            while (bus::process_pending(*connection_)) {
            }
            for (const std::string& line : log_)
                if (line.starts_with(prefix)) return;
            const bus::PollData data = bus::poll_data(*connection_);
            pollfd fd{data.fd, data.events, 0};
            poll(&fd, 1, 10);
        }
        ADD_FAILURE() << "never saw " << prefix;
    }

    test::TemporaryDir dir_;
    std::unique_ptr<PrivateBus> bus_;
    std::unique_ptr<Server> server_;
    std::vector<std::string> log_;
    std::unique_ptr<bus::Connection> connection_;
    std::unique_ptr<ManagerClient> manager_;
};

TEST_F(BusTest, AJobFromCallToResult) {
    const std::string path = manager_->CheckpointUnit("redis", {});
    EXPECT_EQ(path, "/org/checkpointd1/job/1");
    auto watched = job(path);
    server_->run([&] {
        server_->manager->progress({1, "checkpoint.memory", 0.5, 10, 20, 0});
        server_->workers.finish(1, good_result("redis.service/1"));
    });
    receive_until("JobRemoved");
    EXPECT_EQ(log_, (std::vector<std::string>{
                        "JobNew 1 /org/checkpointd1/job/1 redis.service",
                        "PropertiesChanged Bytes BytesTotal Phase Progress State=running",
                        "PropertiesChanged FinishedUsec Progress Result State=done",
                        "JobRemoved 1 redis.service done"}));
    auto property = [&](const char* name) {
        return watched->getProperty(name).onInterface("org.checkpointd1.Job");
    };
    EXPECT_EQ(property("State").get<std::string>(), "done");
    EXPECT_EQ(property("Progress").get<double>(), 1.0);
    EXPECT_EQ(property("Bytes").get<uint64_t>(), 10u);
    const auto result = property("Result").get<bus::VariantMap>();
    EXPECT_EQ(result.at("Image").get<std::string>(), "redis.service/1");
    EXPECT_EQ(result.at("FrozenUsec").get<uint64_t>(), 1500u);
    EXPECT_EQ(result.at("Pages").get<uint64_t>(), 2u);
}

TEST_F(BusTest, UnknownAndWrongOptionsAreErrorsThatNameThem) {
    const std::string unknown =
        error_of([&] { manager_->CheckpointUnit("a", {{"snyc", bus::variant(true)}}); });
    EXPECT_EQ(unknown, "org.checkpointd1.Error.BadInput: option \"snyc\": is not known (known: mode, "
                       "sync, timeout, x-fault)");
    const std::string wrong =
        error_of([&] { manager_->RestoreUnit("a", {{"timeout", bus::variant(std::string("5s"))}}); });
    EXPECT_EQ(wrong,
              "org.checkpointd1.Error.BadInput: option \"timeout\": has type s (it must have type t)");
    EXPECT_NE(error_of([&] {
                  manager_->CheckpointUnit("a", {{"x-fault", bus::variant(std::string("step=a,action=kill"))}});
              }).find("Error.Denied"), std::string::npos);
    EXPECT_TRUE(manager_->ListJobs().empty()) << "a refused call starts nothing";
}

TEST_F(BusTest, ConflictAndCancel) {
    manager_->CheckpointUnit("a", {});
    manager_->CheckpointUnit("b", {});
    EXPECT_NE(error_of([&] { manager_->CheckpointUnit("a", {}); }).find("Error.Conflict: a.service: job 1"),
              std::string::npos);
    EXPECT_EQ(manager_->RunningJobs(), 2u);
    auto first = job("/org/checkpointd1/job/1");
    first->callMethod("Cancel").onInterface("org.checkpointd1.Job");
    server_->run([&] {
        EXPECT_TRUE(server_->workers.cancelled.contains(1));
        EXPECT_FALSE(server_->workers.cancelled.contains(2));
        server_->workers.finish(1, bad_result(ErrorKind::kCancelled, "was cancelled"));
    });
    receive_until("JobRemoved 1 a.service cancelled");
    EXPECT_EQ(first->getProperty("ErrorName").onInterface("org.checkpointd1.Job").get<std::string>(),
              "org.checkpointd1.Error.Cancelled");
    EXPECT_EQ(first->getProperty("ErrorMessage").onInterface("org.checkpointd1.Job").get<std::string>(),
              "x.service: was cancelled (try harder)");
    EXPECT_NE(error_of([&] { first->callMethod("Cancel").onInterface("org.checkpointd1.Job"); })
                  .find("Error.Conflict"),
              std::string::npos);
}

TEST_F(BusTest, ImagesAndPolicy) {
    server_->run([&] { server_->images.add("a.service/1", "a.service", "ready"); });
    ASSERT_EQ(manager_->ListImages().size(), 1u);
    EXPECT_EQ(std::get<2>(manager_->ListImages()[0]), "ready");
    EXPECT_EQ(manager_->GetImage("a.service/1").at("Bytes").get<uint64_t>(), 4096u);
    EXPECT_EQ(manager_->ExplainImage("a.service/1"), "plan of a.service/1");
    EXPECT_NE(error_of([&] { manager_->ExplainImage("none/1"); }).find("Error.NotFound"),
              std::string::npos);
    EXPECT_NE(error_of([&] { manager_->RemoveImage("a.service/1", {}); }).find("Error.Conflict"),
              std::string::npos);
    manager_->RemoveImage("a.service/1", {{"force", bus::variant(true)}});
    EXPECT_NE(manager_->ShowPolicy("a").find("memory: 10min"), std::string::npos);
    EXPECT_EQ(manager_->Version(), "1.2.3");
    manager_->ReloadPolicy();
}

// Somebody else than root, by hand with busctl; there is no polkit on this bus.
TEST_F(BusTest, OthersThanRootAreDeniedWithoutPolkit) {
    if (geteuid() != 0) GTEST_SKIP() << "needs root to become somebody else";
    ASSERT_EQ(chmod(dir_.path().c_str(), 0755), 0);
    const std::string out = dir_.path() + "/out";
    const std::string busctl = "setpriv --reuid=65534 --clear-groups busctl --address=unix:path=" +
                               dir_.path() + "/bus call org.checkpointd1 /org/checkpointd1 "
                               "org.checkpointd1.Manager ";
    EXPECT_NE(system((busctl + "CheckpointUnit 'sa{sv}' a 0 >" + out + " 2>&1").c_str()), 0);
    std::ifstream file(out);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    EXPECT_NE(text.find("only root may do this"), std::string::npos) << text;
    EXPECT_EQ(system((busctl + "ListJobs >" + out).c_str()), 0);
    EXPECT_TRUE(manager_->ListJobs().empty());
}

// Every interface, member, argument and annotation, one per line.
std::vector<std::string> members(const std::string& xml, const std::string& interface) {
    const std::string text = std::regex_replace(xml, std::regex("<!--[^]*?-->"), "");
    const size_t begin = text.find("<interface name=\"" + interface + "\"");
    const std::string body = text.substr(begin, text.find("</interface>", begin) - begin);
    std::vector<std::string> lines;
    const std::regex element("<(method|signal|property|arg|annotation)\\s([^>]*?)/?>");
    const std::regex attribute("(\\w+)=\"([^\"]*)\"");
    std::string member;
    for (std::sregex_iterator it(body.begin(), body.end(), element), end; it != end; ++it) {
        std::map<std::string, std::string> values;
        const std::string attributes = (*it)[2];
        for (std::sregex_iterator a(attributes.begin(), attributes.end(), attribute); a != end; ++a)
            values[(*a)[1]] = (*a)[2];
        // A hint to the generator that does not show on the bus; "true" is the default.
        if (values["name"].ends_with(".Async")) continue;
        if (values["name"].ends_with(".EmitsChangedSignal") && values["value"] == "true") continue;
        if (values["direction"] == "out" && member.starts_with("signal")) values.erase("direction");
        std::string line = (*it)[1];
        for (const auto& [key, value] : values)
            if (!value.empty()) line += " " + key + "=" + value;
        if ((*it)[1] != "arg" && (*it)[1] != "annotation") member = line;
        lines.push_back(line == member ? line : member + ": " + line);
    }
    std::sort(lines.begin(), lines.end());
    return lines;
}

std::string read_source(const std::string& name) {
    std::ifstream file(std::string(DBUS_XML_DIR) + "/" + name + ".xml");
    return {std::istreambuf_iterator<char>(file), {}};
}

TEST_F(BusTest, LiveIntrospectionIsTheXml) {
    manager_->CheckpointUnit("a", {});
    const auto wanted = members(read_source("org.checkpointd1.Manager"), "org.checkpointd1.Manager");
    EXPECT_GT(wanted.size(), 30u);
    EXPECT_EQ(members(manager_->Introspect(), "org.checkpointd1.Manager"), wanted);
    std::string live;
    job("/org/checkpointd1/job/1")
        ->callMethod("Introspect")
        .onInterface("org.freedesktop.DBus.Introspectable")
        .storeResultsTo(live);
    EXPECT_EQ(members(live, "org.checkpointd1.Job"),
              members(read_source("org.checkpointd1.Job"), "org.checkpointd1.Job"));
}

}  // namespace
}  // namespace checkpointd
