// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A program that holds some of everything, to be dumped by one engine and restored by another:
//   victim DIR
// It writes DIR/ready when all is set up. Whenever DIR/ask appears it looks at everything from inside, uses
// it up and refills it, and answers in DIR/report: one line "ok NAME" or "bad NAME: WHAT" for each thing.
#include <arpa/inet.h>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <string>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

constexpr char kText[] = "carried";
constexpr int kLength = sizeof(kText) - 1;
constexpr int kThreads = 3;
constexpr uint64_t kCount = 41;

struct Worker {
    pthread_t thread;
    std::atomic<pid_t> tid{0};
    std::atomic<uint64_t> beats{0};
};

struct Victim {
    std::string dir;
    pid_t pid = 0;
    pid_t child = 0;
    Worker workers[kThreads];
    int pipe_full[2], to_child[2], from_child[2];
    int log = -1, deleted = -1;
    int event = -1, timer = -1, epoll = -1, signals = -1, memory = -1;
    int pair[2], datagrams[2], named = -1;
    int tcp = -1, udp = -1;
    timer_t posix{};
    uint64_t* shared = nullptr;  // the child counts in it
    FILE* report = nullptr;
};

volatile sig_atomic_t timer_ticks = 0;

void on_timer(int) {
    timer_ticks = timer_ticks + 1;
}

void require(bool good, const char* what) {
    if (good)
        return;
    std::perror(what);
    _exit(1);
}

void* beat(void* data) {
    auto* worker = static_cast<Worker*>(data);
    worker->tid = static_cast<pid_t>(syscall(SYS_gettid));
    for (;;) {
        worker->beats++;
        usleep(2000);
    }
}

[[noreturn]] void live_as_child(Victim& v) {
    char byte = 0;
    close(v.to_child[1]);  // so that the parent's end ends us
    while (read(v.to_child[0], &byte, 1) == 1) {
        ++*v.shared;
        byte = static_cast<char>(byte + 1);
        require(write(v.from_child[1], &byte, 1) == 1, "child's answer");
    }
    _exit(0);
}

sockaddr_un named_address(const Victim& v) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::snprintf(address.sun_path, sizeof(address.sun_path), "%s/socket", v.dir.c_str());
    return address;
}

int bound_inet(int type) {
    int fd = socket(AF_INET, type, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    require(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0, "bind");
    return fd;
}

void refill(Victim& v) {
    require(write(v.pipe_full[1], kText, kLength) == kLength, "pipe");
    require(write(v.pair[0], kText, kLength) == kLength, "stream");
    require(write(v.datagrams[0], kText, kLength) == kLength, "datagram");
    require(write(v.datagrams[0], kText, 3) == 3, "datagram");
    require(write(v.event, &kCount, sizeof(kCount)) == sizeof(kCount), "eventfd");
    require(kill(v.pid, SIGUSR2) == 0, "kill");  // blocked: stays pending
}

void open_files(Victim& v) {
    v.log = open((v.dir + "/log").c_str(), O_RDWR | O_CREAT | O_APPEND, 0640);
    require(write(v.log, kText, kLength) == kLength && lseek(v.log, 3, SEEK_SET) == 3, "log");
    std::string name = v.dir + "/deleted";
    v.deleted = open(name.c_str(), O_RDWR | O_CREAT, 0600);
    require(write(v.deleted, kText, kLength) == kLength && unlink(name.c_str()) == 0, "deleted");
    v.memory = static_cast<int>(syscall(SYS_memfd_create, "victim", MFD_ALLOW_SEALING));
    require(write(v.memory, kText, kLength) == kLength, "memfd");
    require(mkdir((v.dir + "/cwd").c_str(), 0700) == 0 && chdir((v.dir + "/cwd").c_str()) == 0, "cwd");
    umask(027);
}

void open_sockets(Victim& v) {
    require(socketpair(AF_UNIX, SOCK_STREAM, 0, v.pair) == 0, "socketpair");
    require(socketpair(AF_UNIX, SOCK_DGRAM, 0, v.datagrams) == 0, "socketpair");
    v.named = socket(AF_UNIX, SOCK_STREAM, 0);
    sockaddr_un address = named_address(v);
    require(bind(v.named, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0, "bind");
    require(listen(v.named, 7) == 0, "listen");
    v.tcp = bound_inet(SOCK_STREAM);
    require(listen(v.tcp, 7) == 0, "listen");
    v.udp = bound_inet(SOCK_DGRAM);
}

void open_events(Victim& v) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    require(sigprocmask(SIG_BLOCK, &set, nullptr) == 0, "mask");
    v.signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    v.event = eventfd(0, EFD_NONBLOCK);
    v.timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    itimerspec beats{{0, 5'000'000}, {0, 5'000'000}};
    require(timerfd_settime(v.timer, 0, &beats, nullptr) == 0, "timerfd");
    v.epoll = epoll_create1(EPOLL_CLOEXEC);
    epoll_event wanted{};
    wanted.events = EPOLLIN;
    wanted.data.u64 = 0xfeed;
    require(epoll_ctl(v.epoll, EPOLL_CTL_ADD, v.event, &wanted) == 0, "epoll");
    struct sigaction action {};
    action.sa_handler = on_timer;
    action.sa_flags = SA_RESTART;
    require(sigaction(SIGRTMIN + 3, &action, nullptr) == 0, "sigaction");
    sigevent event{};
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGRTMIN + 3;
    require(timer_create(CLOCK_MONOTONIC, &event, &v.posix) == 0, "timer_create");
    require(timer_settime(v.posix, 0, &beats, nullptr) == 0, "timer_settime");
}

void set_up(Victim& v) {
    v.pid = getpid();
    require(pipe(v.pipe_full) == 0 && pipe(v.to_child) == 0 && pipe(v.from_child) == 0, "pipe");
    v.shared = static_cast<uint64_t*>(
        mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    open_files(v);
    v.child = fork();
    if (v.child == 0)
        live_as_child(v);
    open_sockets(v);
    open_events(v);
    for (Worker& worker : v.workers)
        require(pthread_create(&worker.thread, nullptr, beat, &worker) == 0, "thread");
    refill(v);
}

// ---- the look from inside -------------------------------------------------------------------------

void tell(Victim& v, const char* name, bool good, long got = 0) {
    if (good)
        std::fprintf(v.report, "ok %s\n", name);
    else
        std::fprintf(v.report, "bad %s: got %ld, %s\n", name, got, std::strerror(errno));
}

void expect_text(Victim& v, const char* name, int fd, int length = kLength) {
    char buffer[64] = {};
    ssize_t size = recv(fd, buffer, sizeof(buffer), MSG_DONTWAIT);
    if (size < 0 && errno == ENOTSOCK)
        size = read(fd, buffer, sizeof(buffer));
    tell(v, name, size == length && std::memcmp(buffer, kText, static_cast<size_t>(length)) == 0, size);
}

// The timer's handler ends every sleep early.
void pass_time() {
    timespec end{};
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_nsec += 50'000'000;
    end.tv_sec += end.tv_nsec / 1'000'000'000;
    end.tv_nsec %= 1'000'000'000;
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, nullptr) == EINTR) {
    }
}

void look_at_tasks(Victim& v) {
    tell(v, "pid", getpid() == v.pid && getsid(0) == v.pid, getpid());
    uint64_t before[kThreads];
    for (int i = 0; i < kThreads; i++)
        before[i] = v.workers[i].beats;
    pass_time();
    bool alive = true;
    for (int i = 0; i < kThreads; i++)
        alive = alive && v.workers[i].beats > before[i] &&
                syscall(SYS_tgkill, v.pid, v.workers[i].tid.load(), 0) == 0;
    tell(v, "threads", alive);
    uint64_t counted = *v.shared;
    char byte = 5;
    bool asked = write(v.to_child[1], &byte, 1) == 1 && read(v.from_child[0], &byte, 1) == 1;
    tell(v, "child and its pipes", asked && byte == 6, byte);
    tell(v, "shared memory", *v.shared == counted + 1, static_cast<long>(*v.shared));
    tell(v, "child is ours", waitpid(v.child, nullptr, WNOHANG) == 0);
}

void look_at_files(Victim& v) {
    expect_text(v, "pipe content", v.pipe_full[0]);
    tell(v, "file offset", lseek(v.log, 0, SEEK_CUR) == 3, lseek(v.log, 0, SEEK_CUR));
    tell(v, "file flags", (fcntl(v.log, F_GETFL) & O_APPEND) != 0, fcntl(v.log, F_GETFL));
    char buffer[64] = {};
    struct stat st {};
    bool same = pread(v.deleted, buffer, sizeof(buffer), 0) == kLength &&
                std::memcmp(buffer, kText, kLength) == 0 && fstat(v.deleted, &st) == 0;
    tell(v, "deleted file", same && st.st_nlink == 0, static_cast<long>(st.st_nlink));
    same = pread(v.memory, buffer, sizeof(buffer), 0) == kLength &&
           std::memcmp(buffer, kText, kLength) == 0;
    tell(v, "memfd", same && fcntl(v.memory, F_GET_SEALS) == 0, fcntl(v.memory, F_GET_SEALS));
    bool there = getcwd(buffer, sizeof(buffer)) != nullptr && v.dir + "/cwd" == buffer;
    tell(v, "cwd", there);
    mode_t mask = umask(027);
    tell(v, "umask", mask == 027, static_cast<long>(mask));
}

void look_at_events(Victim& v) {
    epoll_event found{};
    int ready = epoll_wait(v.epoll, &found, 1, 0);
    tell(v, "epoll", ready == 1 && found.data.u64 == 0xfeed, ready);
    uint64_t count = 0;
    bool got = read(v.event, &count, sizeof(count)) == sizeof(count);
    tell(v, "eventfd", got && count == kCount, static_cast<long>(count));
    signalfd_siginfo info{};
    got = read(v.signals, &info, sizeof(info)) == sizeof(info);
    tell(v, "pending signal", got && info.ssi_signo == SIGUSR2, static_cast<long>(info.ssi_signo));
    (void)!read(v.timer, &count, sizeof(count));
    int ticks = timer_ticks;
    pass_time();
    count = 0;
    got = read(v.timer, &count, sizeof(count)) == sizeof(count);
    tell(v, "timerfd", got && count > 0 && count < 1000, static_cast<long>(count));
    tell(v, "posix timer", timer_ticks > ticks, timer_ticks);
}

void look_at_sockets(Victim& v) {
    expect_text(v, "stream content", v.pair[1]);
    expect_text(v, "first datagram", v.datagrams[1]);
    expect_text(v, "second datagram", v.datagrams[1], 3);
    sockaddr_un address = named_address(v);
    int client = socket(AF_UNIX, SOCK_STREAM, 0);
    int made = connect(client, reinterpret_cast<sockaddr*>(&address), sizeof(address));
    int accepted = made == 0 ? accept(v.named, nullptr, nullptr) : -1;
    tell(v, "unix listener", accepted >= 0);
    close(client);
    close(accepted);
    sockaddr_in there{};
    socklen_t size = sizeof(there);
    getsockname(v.tcp, reinterpret_cast<sockaddr*>(&there), &size);
    client = socket(AF_INET, SOCK_STREAM, 0);
    made = connect(client, reinterpret_cast<sockaddr*>(&there), size);
    accepted = made == 0 ? accept(v.tcp, nullptr, nullptr) : -1;
    tell(v, "tcp listener", accepted >= 0);
    close(client);
    close(accepted);
    getsockname(v.udp, reinterpret_cast<sockaddr*>(&there), &size);
    client = socket(AF_INET, SOCK_DGRAM, 0);
    (void)!sendto(client, kText, kLength, 0, reinterpret_cast<sockaddr*>(&there), size);
    expect_text(v, "udp socket", v.udp);
    close(client);
}

void answer(Victim& v) {
    v.report = std::fopen((v.dir + "/report.new").c_str(), "w");
    require(v.report != nullptr, "report");
    look_at_tasks(v);
    look_at_files(v);
    look_at_events(v);
    look_at_sockets(v);
    std::fclose(v.report);
    refill(v);
    rename((v.dir + "/report.new").c_str(), (v.dir + "/report").c_str());
}

}  // namespace

int main(int argc, char** argv) {
    static Victim v;  // threads and the child point into it
    require(argc == 2, "usage: victim DIR");
    v.dir = argv[1];
    set_up(v);
    int ready = creat((v.dir + "/ready").c_str(), 0600);
    close(ready);
    for (std::string ask = v.dir + "/ask";;) {
        usleep(5000);
        if (unlink(ask.c_str()) == 0)
            answer(v);
    }
}
