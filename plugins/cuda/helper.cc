// SPDX-License-Identifier: LGPL-2.1-or-later
//
// checkpointd-cuda: keeps the CUDA driver loaded and makes its checkpoint calls for others. Started by
// checkpointd-cuda.socket, it serves whoever connects (root alone can) until nobody has for a while; or, as
// `checkpointd-cuda --fd N`, the one at the other end of that socket. Each connection has a thread of its own: a call
// that hangs holds up nobody else, and is never cut short.
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <poll.h>
#include <string>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>

#include <fmt/core.h>

#include "core/base/scoped_fd.h"
#include "plugins/cuda/driver.h"

namespace checkpointd::cuda {
namespace {

constexpr int kListenFd = 3;  // SD_LISTEN_FDS_START
constexpr int kIdleMs = 10 * 60 * 1000;
constexpr int kSoonMs = 300;

Answer refusal(const Error& error) {
    Answer answer;
    answer.code = error.kind == ErrorKind::kNotFound ? kNoDevice : kNotInitialized;
    std::strncpy(answer.text, error.line().c_str(), sizeof(answer.text) - 1);
    return answer;
}

void serve(ScopedFd connection, const Result<Driver>& driver) {
    Request request;
    while (recv(connection.get(), &request, sizeof(request), 0) == sizeof(request)) {
        Answer answer = driver ? driver->serve(request) : refusal(driver.error());
        if (request.version != kMessageVersion)
            answer.code = kInvalidValue;
        if (send(connection.get(), &answer, sizeof(answer), MSG_NOSIGNAL) != sizeof(answer))
            break;
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
    explicit Server(const Result<Driver>& driver) : driver_(driver) {}

    // Until nobody is connected for a while, or when told to stop nobody any more. Without a driver it waits for a
    // moment only: the next start may find one.
    int run() {
        ScopedFd signals = take_sigterm();
        bool stopping = false;
        for (;;) {
            pollfd waiting[] = {{stopping ? -1 : kListenFd, POLLIN, 0}, {stopping ? -1 : signals.get(), POLLIN, 0}};
            const int ready = poll(waiting, 2, stopping || !driver_ ? kSoonMs : kIdleMs);
            if (ready == 0 && connections_ == 0)
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
            serve(std::move(own), driver_);
            --connections_;
        }).detach();
    }

    const Result<Driver>& driver_;
    std::atomic<int> connections_ = 0;
};

}  // namespace
}  // namespace checkpointd::cuda

int main(int argc, char** argv) {
    using namespace checkpointd::cuda;
    const bool is_private = argc == 3 && std::string(argv[1]) == "--fd";
    if (!is_private && getenv("LISTEN_FDS") == nullptr) {
        fmt::print(stderr, "checkpointd-cuda is started by checkpointd-cuda.socket, or with --fd N\n");
        return EXIT_FAILURE;
    }
    const auto driver = Driver::load();
    if (is_private) {
        serve(checkpointd::ScopedFd(std::atoi(argv[2])), driver);
        return EXIT_SUCCESS;
    }
    return Server(driver).run();
}
