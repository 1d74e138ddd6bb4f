// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A program that asks to be told of its checkpoints (checkpointd-hooks(7)): it holds a connection,
// which cannot be carried, and a number that no two copies of it may share. Tests see in
// FOLDER/state.json what it was told and what it made of that. While there is a file FOLDER/silent
// it says to nobody that it is ready.
//
//   told FOLDER SOCKET PORT     SOCKET - : no socket; PORT 0: no connection
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <arpa/inet.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

namespace {

constexpr int kMostSignals = 16;
volatile sig_atomic_t signals_seen = 0;
volatile int signal_values[kMostSignals];

// What the kernel told us with the signal: checkpointd's word is its value.
void on_signal(int, siginfo_t* info, void*) {
    if (signals_seen < kMostSignals)
        signal_values[signals_seen] = info->si_value.sival_int;
    signals_seen = signals_seen + 1;
}

[[noreturn]] void die(const char* what) {
    std::perror(what);
    std::exit(1);
}

struct Program {
    std::string folder;
    uint16_t port = 0;
    int door = -1;        // where it is told
    int connection = -1;  // what it must drop
    int owed = -1;        // to be closed when it is ready
    uint64_t seed = 0;
    unsigned count = 0;
    int signals_answered = 0;
    std::vector<std::string> told;
};

void reseed(Program& program) {
    if (getrandom(&program.seed, sizeof(program.seed), 0) != sizeof(program.seed))
        die("getrandom");
}

void connect_again(Program& program) {
    if (program.port == 0 || program.connection >= 0)
        return;
    program.connection = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in peer = {};
    peer.sin_family = AF_INET;
    peer.sin_port = htons(program.port);
    peer.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(program.connection, reinterpret_cast<sockaddr*>(&peer), sizeof(peer)) == 0)
        return;
    close(program.connection);
    program.connection = -1;
}

void drop_connection(Program& program) {
    if (program.connection >= 0)
        close(program.connection);
    program.connection = -1;
}

int open_door(const char* path) {
    const int door = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
    unlink(path);
    if (door < 0 || bind(door, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0)
        die(path);
    return door;
}

// The value of KEY= in a message of lines.
std::string value_of(const std::string& message, const std::string& key) {
    const size_t at = message.find(key + "=");
    if (at == std::string::npos)
        return "";
    const size_t begin = at + key.size() + 1;
    return message.substr(begin, message.find('\n', begin) - begin);
}

void obey(Program& program, const std::string& message) {
    if (value_of(message, "EVENT") == "before") {
        program.told.push_back("before " + value_of(message, "MODE"));
        drop_connection(program);
        return;
    }
    const std::string result = value_of(message, "RESULT");
    program.told.push_back("after " + result);
    if (result == "restored")
        reseed(program);
    connect_again(program);
}

void hear(Program& program) {
    char text[4096];
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    iovec part = {text, sizeof(text)};
    msghdr message = {};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    const ssize_t got = recvmsg(program.door, &message, MSG_CMSG_CLOEXEC);
    if (got < 0)
        return;
    if (cmsghdr* header = CMSG_FIRSTHDR(&message); header && header->cmsg_type == SCM_RIGHTS)
        std::memcpy(&program.owed, CMSG_DATA(header), sizeof(int));
    obey(program, std::string(text, static_cast<size_t>(got)));
}

void hear_signals(Program& program) {
    for (; program.signals_answered < signals_seen && program.signals_answered < kMostSignals;
         ++program.signals_answered) {
        const int value = signal_values[program.signals_answered];
        program.told.push_back(fmt::format("signal {}", value));
        if (value == 16)
            reseed(program);
    }
}

void say_ready(Program& program) {
    if (program.owed < 0 || access((program.folder + "/silent").c_str(), F_OK) == 0)
        return;
    close(program.owed);
    program.owed = -1;
}

void report(Program& program) {
    const std::string path = program.folder + "/state.json";
    FILE* file = std::fopen((path + ".new").c_str(), "w");
    if (!file)
        die(path.c_str());
    fmt::print(
        file, R"({{"pid": {}, "count": {}, "seed": {}, "connected": {}, "told": [{}]}})", getpid(),
        ++program.count, program.seed, program.connection >= 0,
        program.told.empty() ? "" : fmt::format("\"{}\"", fmt::join(program.told, "\", \"")));
    std::fclose(file);
    std::rename((path + ".new").c_str(), path.c_str());
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4)
        return 2;
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    sigaction(SIGUSR1, &action, nullptr);
    sigaction(SIGUSR2, &action, nullptr);
    Program program;
    program.folder = argv[1];
    program.port = static_cast<uint16_t>(std::atoi(argv[3]));
    if (std::string(argv[2]) != "-")
        program.door = open_door(argv[2]);
    reseed(program);
    connect_again(program);
    for (;;) {
        pollfd told = {program.door, POLLIN, 0};
        if (poll(&told, 1, 50) > 0)
            hear(program);
        hear_signals(program);
        say_ready(program);
        report(program);
    }
}
