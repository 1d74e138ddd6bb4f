// SPDX-License-Identifier: LGPL-2.1-or-later
//
// checkpointd-cuda: keeps the CUDA driver loaded and makes its checkpoint calls for others. Started by
// checkpointd-cuda.socket, it serves whoever connects (root alone can) until nobody has for a while; or, as
// `checkpointd-cuda --fd N`, the one at the other end of that socket. Each connection has a thread of its own: a call
// that hangs holds up nobody who asks of another process, and is never cut short. It stays while it has device memory of
// somebody (held_storage.h); the private one brings all of them back itself when nobody asks any more.
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <poll.h>
#include <string>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>
#include <vector>

#include <fmt/core.h>

#include "core/base/scoped_fd.h"
#include "plugins/cuda/driver.h"
#include "plugins/cuda/held_storage.h"
#include "plugins/cuda/nvml.h"
#include "plugins/cuda/process.h"

namespace checkpointd::cuda {
namespace {

constexpr int kListenFd = 3;  // SD_LISTEN_FDS_START
constexpr int kIdleMs = 10 * 60 * 1000;
constexpr int kSoonMs = 300;
constexpr std::chrono::hours kBringBackTime{1};

// What is asked, by whomever. Of one process one after the other: who undoes what a dead worker did must not overtake a
// call of that worker.
class Desk {
  public:
    explicit Desk(const Result<Driver>& driver) : driver_(driver), storage_(driver ? driver->storage() : kNoCalls) {}

    Answer serve(const Request& request, ScopedFd file);
    // Processes of which there is device memory here.
    std::vector<pid_t> held();

  private:
    static constexpr StorageCalls kNoCalls{};
    std::shared_ptr<std::mutex> turn_of(pid_t pid);

    const Result<Driver>& driver_;
    HeldStorage storage_;
    std::mutex mutex_;
    std::map<pid_t, std::shared_ptr<std::mutex>> turns_;
};

std::shared_ptr<std::mutex> Desk::turn_of(pid_t pid) {
    std::lock_guard lock(mutex_);
    std::erase_if(turns_, [](const auto& entry) { return entry.second.use_count() == 1; });
    auto& turn = turns_[pid];
    if (!turn)
        turn = std::make_shared<std::mutex>();
    return turn;
}

std::vector<pid_t> Desk::held() {
    for (pid_t pid : storage_.ended()) {
        const auto turn = turn_of(pid);
        if (std::unique_lock lock(*turn, std::try_to_lock); lock)
            storage_.drop(pid);
    }
    storage_.release_contexts();
    return storage_.living();
}

Answer refusal(const Error& error) {
    Answer answer;
    answer.code = kNotAsked;
    std::strncpy(answer.text, error.line().c_str(), sizeof(answer.text) - 1);
    return answer;
}

Answer usage_of(pid_t pid) {
    Answer answer;
    const auto usage = device_memory_of(pid);
    answer.code = usage && usage->size() <= kMaxDevices ? kSuccess : kNotSupported;
    for (size_t i = 0; answer.code == kSuccess && i < usage->size(); ++i)
        answer.devices[answer.device_count++] = (*usage)[i];
    return answer;
}

Answer Desk::serve(const Request& request, ScopedFd file) {
    if (!driver_) {
        Answer answer = refusal(driver_.error());
        // What a driver that cannot checkpoint is used for is found by what it has open (preflight.h).
        if (driver_.error().kind == ErrorKind::kUnsupported)
            answer.code = kNotInitialized;
        return answer;
    }
    if (request.version != kMessageVersion)
        return refusal({ErrorKind::kUnsupported, "checkpointd-cuda", "is of another version than who asks", {}, 0, {}});
    if (request.operation == Operation::kUsage)
        return usage_of(request.pid);
    if (request.operation < Operation::kState)
        return driver_->serve(request);
    const auto turn = turn_of(request.pid);
    std::lock_guard lock(*turn);
    if (request.operation < Operation::kMapCheckpoint)
        return driver_->serve(request);
    Answer answer = storage_.serve(request, std::move(file));
    driver_->name_code(answer);
    return answer;
}

bool receive(int socket, Request& request, ScopedFd& file) {
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    iovec data{&request, sizeof(request)};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    const ssize_t got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    const cmsghdr* header = got > 0 ? CMSG_FIRSTHDR(&message) : nullptr;
    if (header != nullptr && header->cmsg_type == SCM_RIGHTS) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(header), sizeof(fd));
        file.reset(fd);
    }
    return got == sizeof(request);
}

void serve(const ScopedFd& connection, Desk& desk) {
    Request request;
    ScopedFd file;
    while (receive(connection.get(), request, file)) {
        const Answer answer = desk.serve(request, std::move(file));
        if (send(connection.get(), &answer, sizeof(answer), MSG_NOSIGNAL) != sizeof(answer))
            break;
    }
}

// `checkpointd-cuda --devices [PID]`, for whoever has the command cuda-checkpoint, which tells of no memory: without libcuda.so.1.
int tell_devices(const char* pid) {
    Answer answer;
    if (pid != nullptr) {
        answer = usage_of(std::atoi(pid));
    } else {
        const auto devices = devices_by_nvml();
        answer = devices.value_or(answer);
        answer.code = devices ? kSuccess : kNotSupported;
    }
    return write(STDOUT_FILENO, &answer, sizeof(answer)) == sizeof(answer) ? EXIT_SUCCESS : EXIT_FAILURE;
}

// The plugin's way from state to state, without a socket between.
class OwnBackend : public Backend {
  public:
    explicit OwnBackend(Desk& desk) : desk_(desk) {}
    Result<Answer> ask(const Request& request, Deadline, int) override { return desk_.serve(request, ScopedFd()); }
    bool finish_late(Deadline) override { return true; }

  private:
    Desk& desk_;
};

// Nobody else would: what is here is all that there is of their numbers.
void bring_back_all(Desk& desk) {
    OwnBackend backend(desk);
    for (pid_t pid : desk.held()) {
        const auto deadline = std::chrono::steady_clock::now() + kBringBackTime;
        auto process = Process::find(backend, pid, deadline);
        auto back = process && *process ? (*process)->bring_back(nullptr, {}, {}, deadline) : Result<void>();
        if (!back)
            fmt::print(stderr, "checkpointd-cuda: {}\n", back.error().line());
    }
}

// Blocked for all threads that come later.
ScopedFd take_sigterm() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set, nullptr);
    return ScopedFd(signalfd(-1, &set, SFD_CLOEXEC));
}

class Server {
  public:
    Server(Desk& desk, bool has_driver) : desk_(desk), has_driver_(has_driver) {}

    // Until nobody is connected for a while, or when told to stop nobody any more; and nothing is held. So long it serves
    // whoever else comes, too. Without a driver it waits for a moment only: the next start may find one.
    int run() {
        ScopedFd signals = take_sigterm();
        bool stopping = false;
        for (int idle_ms = 0;;) {
            const bool holds = !desk_.held().empty();
            const bool ends = stopping && !holds && connections_ == 0;
            pollfd waiting[] = {{ends ? -1 : kListenFd, POLLIN, 0}, {stopping ? -1 : signals.get(), POLLIN, 0}};
            const int time_ms = stopping || holds || !has_driver_ ? kSoonMs : kIdleMs;
            const int ready = poll(waiting, 2, time_ms);
            idle_ms = ready == 0 && connections_ == 0 && !holds ? idle_ms + time_ms : 0;
            if (idle_ms >= (stopping || !has_driver_ ? kSoonMs : kIdleMs))
                return EXIT_SUCCESS;
            if (ready > 0 && waiting[0].revents != 0)
                accept_one();
            stopping |= ready > 0 && waiting[1].revents != 0;
        }
    }

  private:
    void accept_one() {
        ScopedFd connection(accept4(kListenFd, nullptr, nullptr, SOCK_CLOEXEC));
        if (!connection)
            return;
        ++connections_;
        std::thread([this, own = std::move(connection)]() mutable {
            serve(own, desk_);
            --connections_;
        }).detach();
    }

    Desk& desk_;
    bool has_driver_;
    std::atomic<int> connections_ = 0;
};

}  // namespace
}  // namespace checkpointd::cuda

int main(int argc, char** argv) {
    using namespace checkpointd::cuda;
    if (argc >= 2 && std::string(argv[1]) == "--devices")
        return tell_devices(argc > 2 ? argv[2] : nullptr);
    const bool is_private = argc == 3 && std::string(argv[1]) == "--fd";
    if (!is_private && getenv("LISTEN_FDS") == nullptr) {
        fmt::print(stderr, "checkpointd-cuda is started by checkpointd-cuda.socket, or with --fd N\n");
        return EXIT_FAILURE;
    }
    const auto driver = Driver::load();
    Desk desk(driver);
    if (is_private) {
        const checkpointd::ScopedFd signals = take_sigterm();  // whoever stops its worker's unit means the worker
        serve(checkpointd::ScopedFd(std::atoi(argv[2])), desk);
        bring_back_all(desk);
        return EXIT_SUCCESS;
    }
    return Server(desk, driver.has_value()).run();
}
