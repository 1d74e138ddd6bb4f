// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A service to checkpoint: it counts, and it watches itself. Two processes joined by a pipe, threads
// that block in different system calls, a timerfd, a POSIX timer with a signal handler, an absolute
// deadline, a log file, stdout. What it sees goes to two files that a test reads:
// state.json (main process) and consumer.json (the other end of the pipe), replaced atomically.
//
// usage: counter STATE_DIR LOG_FILE [SECONDS_BETWEEN_DEADLINES]
#include <fcntl.h>
#include <malloc.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <fmt/core.h>

namespace {

constexpr int64_t kNanoseconds = 1'000'000'000;
constexpr int64_t kTick = 100'000'000;       // counter, by timerfd
constexpr int64_t kSignalPeriod = 50'000'000;  // POSIX timer
constexpr int64_t kItemPeriod = 10'000'000;  // items into the pipe
constexpr int64_t kReportPeriod = 50'000'000;

int64_t now_ns(clockid_t clock) {
    timespec time{};
    clock_gettime(clock, &time);
    return time.tv_sec * kNanoseconds + time.tv_nsec;
}

timespec to_timespec(int64_t ns) {
    return {.tv_sec = ns / kNanoseconds, .tv_nsec = ns % kNanoseconds};
}

[[noreturn]] void die(const char* what) {
    fmt::print(stderr, "counter: {}: {}\n", what, std::strerror(errno));
    _exit(1);
}

// Sleeps without caring about interruptions, but counts them.
void sleep_for(int64_t ns, std::atomic<uint64_t>& interrupted) {
    timespec left = to_timespec(ns);
    while (nanosleep(&left, &left) != 0)
        ++interrupted;
}

// What a handler of a signal may touch. Nothing else here is global.
volatile sig_atomic_t stop_requested = 0;
std::atomic<uint64_t> timer_signals = 0;

void on_stop(int) { stop_requested = 1; }
void on_timer(int) { ++timer_signals; }

void handle(int signal, void (*handler)(int), int flags) {
    struct sigaction action {};
    action.sa_handler = handler;
    action.sa_flags = flags;
    if (sigaction(signal, &action, nullptr) != 0)
        die("sigaction");
}

// Makes `path` hold `text` at once: a reader sees the old text or the new one.
void replace_file(const std::string& path, const std::string& text) {
    const std::string aside = path + ".new";
    const int fd = open(aside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0 || write(fd, text.data(), text.size()) != static_cast<ssize_t>(text.size()))
        die(aside.c_str());
    close(fd);
    if (rename(aside.c_str(), path.c_str()) != 0)
        die(path.c_str());
}

// Memory with a known content: a page that comes back wrong or not at all shows.
class Pattern {
  public:
    explicit Pattern(size_t words) : words_(words) {
        for (size_t i = 0; i < words_.size(); ++i)
            words_[i] = value_at(i);
    }
    bool intact() const {
        for (size_t i = 0; i < words_.size(); ++i)
            if (words_[i] != value_at(i))
                return false;
        return true;
    }

  private:
    static uint64_t value_at(size_t i) { return (i + 1) * 0x9e3779b97f4a7c15u; }
    std::vector<uint64_t> words_;
};

// ---- the consumer: a process that reads numbers from the pipe and knows what must come next

struct Consumer {
    std::string state_file;
    int pipe = -1;
    std::atomic<uint64_t> received = 0, lost = 0, repeated = 0, interrupted = 0;
    std::atomic<uint64_t> sleep_interrupted = 0;
    uint64_t updates = 0;

    void report() {
        replace_file(state_file,
                     fmt::format(R"({{"pid": {}, "updates": {}, "received": {}, "lost": {}, )"
                                 R"("repeated": {}, "eintr_read": {}, "eintr_sleep": {}}})"
                                 "\n",
                                 getpid(), ++updates, received.load(), lost.load(), repeated.load(),
                                 interrupted.load(), sleep_interrupted.load()));
    }

    void take(uint64_t number, uint64_t expected) {
        if (number > expected)
            lost += number - expected;
        if (number < expected)
            ++repeated;
        ++received;
    }

    // Returns at the end of the pipe.
    void read_items() {
        uint64_t number = 0, expected = 1;
        for (;;) {
            const ssize_t size = read(pipe, &number, sizeof number);
            if (size == 0)
                return;
            if (size < 0 && errno == EINTR) {
                ++interrupted;
                continue;
            }
            if (size != sizeof number)
                die("read from the pipe");
            take(number, expected);
            expected = number + 1;
        }
    }
};

[[noreturn]] void run_consumer(const std::string& state_dir, int pipe) {
    prctl(PR_SET_NAME, "consumer");
    // It leaves when the pipe ends, so that nothing in it is lost at a stop.
    handle(SIGTERM, SIG_IGN, 0);
    Consumer consumer;
    consumer.state_file = state_dir + "/consumer.json";
    consumer.pipe = pipe;
    std::thread([&consumer] {
        prctl(PR_SET_NAME, "consumer-report");
        for (;;) {
            consumer.report();
            sleep_for(kReportPeriod, consumer.sleep_interrupted);
        }
    }).detach();
    consumer.read_items();
    fmt::print("consumer ends after {} items\n", consumer.received.load());
    fflush(stdout);
    _exit(consumer.lost == 0 && consumer.repeated == 0 ? 0 : 3);
}

// ---- the main process

struct Counter {
    std::string state_file;
    int log = -1, pipe = -1, idle = -1;
    pid_t consumer = 0;
    int64_t deadline_period = 0;
    std::unique_ptr<Pattern> memory = std::make_unique<Pattern>(1u << 19);  // 4 MiB

    std::atomic<uint64_t> count = 0, expirations = 0, sent = 0, wakes = 0;
    std::atomic<int64_t> next_deadline = 0, last_deadline = 0, last_lateness = 0, worst_lateness = 0;
    std::atomic<int64_t> largest_gap = 0;  // between two items, by CLOCK_MONOTONIC
    std::atomic<uint64_t> eintr_epoll = 0, eintr_deadline = 0, eintr_read = 0, eintr_sleep = 0;
    std::atomic<pid_t> tid_producer = 0, tid_sleeper = 0, tid_signalled = 0, tid_idle = 0,
                       tid_reporter = 0;
    uint64_t updates = 0;

    void produce();
    void sleep_towards_deadlines();
    void wait_for_timer_signals();
    void block_for_ever();
    void report_for_ever();
    void report();
    void tick(uint64_t expired);
    void count_until_stopped();
};

void name_thread(const char* name, std::atomic<pid_t>& tid) {
    prctl(PR_SET_NAME, name);
    tid = gettid();
}

// All signals stay with the threads that ask for them.
void block_all_signals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, nullptr);
}

void Counter::produce() {
    name_thread("producer", tid_producer);
    int64_t last = now_ns(CLOCK_MONOTONIC);
    for (uint64_t number = 1;; ++number) {
        if (write(pipe, &number, sizeof number) != sizeof number)
            die("write to the pipe");
        sent = number;
        sleep_for(kItemPeriod, eintr_sleep);
        const int64_t now = now_ns(CLOCK_MONOTONIC);
        if (now - last > largest_gap)
            largest_gap = now - last;
        last = now;
    }
}

void Counter::sleep_towards_deadlines() {
    name_thread("sleeper", tid_sleeper);
    for (;;) {
        const int64_t deadline = now_ns(CLOCK_MONOTONIC) + deadline_period;
        next_deadline = deadline;
        const timespec time = to_timespec(deadline);
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nullptr) == EINTR)
            ++eintr_deadline;
        const int64_t lateness = now_ns(CLOCK_MONOTONIC) - deadline;
        last_deadline = deadline;
        last_lateness = lateness;
        if (lateness > worst_lateness)
            worst_lateness = lateness;
        ++wakes;
        fmt::print("deadline {} reached, {} us late\n", wakes.load(), lateness / 1000);
        fflush(stdout);
    }
}

// Sits in read(2) of an eventfd that never comes; each timer signal runs the handler here, and
// SA_RESTART brings it back into the call.
void Counter::wait_for_timer_signals() {
    name_thread("signalled", tid_signalled);
    sigevent event{};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGRTMIN + 3;
    event._sigev_un._tid = gettid();
    timer_t timer{};
    itimerspec period{to_timespec(kSignalPeriod), to_timespec(kSignalPeriod)};
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) != 0 ||
        timer_settime(timer, 0, &period, nullptr) != 0)
        die("timer_create");
    sigset_t wanted;
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGRTMIN + 3);
    pthread_sigmask(SIG_UNBLOCK, &wanted, nullptr);
    block_for_ever();
}

// No signal is ever sent to this thread: an EINTR would be of somebody else's making.
void Counter::block_for_ever() {
    uint64_t value = 0;
    for (;;) {
        if (read(idle, &value, sizeof value) < 0 && errno == EINTR)
            ++eintr_read;
    }
}

void Counter::report_for_ever() {
    name_thread("reporter", tid_reporter);
    for (;;) {
        report();
        sleep_for(kReportPeriod, eintr_sleep);
    }
}

void Counter::report() {
    std::string text = fmt::format(
        R"({{"pid": {}, "consumer": {}, "threads": {{"main": {}, "producer": {}, "sleeper": {}, )"
        R"("signalled": {}, "idle": {}, "reporter": {}}}, "updates": {}, )",
        getpid(), consumer, getpid(), tid_producer.load(), tid_sleeper.load(), tid_signalled.load(),
        tid_idle.load(), tid_reporter.load(), ++updates);
    text += fmt::format(
        R"("count": {}, "expirations": {}, "sent": {}, "timer_signals": {}, "memory_intact": {}, )",
        count.load(), expirations.load(), sent.load(), timer_signals.load(), memory->intact());
    text += fmt::format(
        R"("wakes": {}, "next_deadline_ns": {}, "last_deadline_ns": {}, "last_lateness_ns": {}, )"
        R"("worst_lateness_ns": {}, "largest_gap_ns": {}, "monotonic_ns": {}, "realtime_ns": {}, )",
        wakes.load(), next_deadline.load(), last_deadline.load(), last_lateness.load(),
        worst_lateness.load(), largest_gap.load(), now_ns(CLOCK_MONOTONIC), now_ns(CLOCK_REALTIME));
    text += fmt::format(
        R"("eintr": {{"epoll": {}, "deadline": {}, "read": {}, "sleep": {}}}}})"
        "\n",
        eintr_epoll.load(), eintr_deadline.load(), eintr_read.load(), eintr_sleep.load());
    replace_file(state_file, text);
}

// One step: the number goes to the log file and, each tenth, to stdout.
void Counter::tick(uint64_t expired) {
    expirations += expired;
    const uint64_t number = ++count;
    const std::string line = fmt::format("{}\n", number);
    if (write(log, line.data(), line.size()) != static_cast<ssize_t>(line.size()))
        die("write to the log");
    if (number % 10 == 0) {
        fmt::print("count {}\n", number);
        fflush(stdout);
    }
}

void Counter::count_until_stopped() {
    const int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    const int poll = epoll_create1(EPOLL_CLOEXEC);
    const itimerspec period{to_timespec(kTick), to_timespec(kTick)};
    epoll_event event{EPOLLIN, {}};
    if (timer < 0 || poll < 0 || timerfd_settime(timer, 0, &period, nullptr) != 0 ||
        epoll_ctl(poll, EPOLL_CTL_ADD, timer, &event) != 0)
        die("timerfd in epoll");
    while (stop_requested == 0) {
        const int ready = epoll_wait(poll, &event, 1, -1);
        if (ready < 0 && errno == EINTR)
            ++eintr_epoll;
        uint64_t expired = 0;
        if (ready == 1 && read(timer, &expired, sizeof expired) == sizeof expired)
            tick(expired);
    }
}

// Tests compare /proc/PID/maps of two moments. glibc gives a thread that meets a held lock an arena of its
// own, at any time, and the heap grows and shrinks: one arena, as large as it will ever be, does not.
void keep_mappings_as_they_are() {
    constexpr int kHeap = 1 << 20;
    if (mallopt(M_ARENA_MAX, 1) == 0 || mallopt(M_TOP_PAD, kHeap) == 0 ||
        mallopt(M_TRIM_THRESHOLD, 4 * kHeap) == 0)
        die("mallopt");
    // Does not fit into what there is: now it grows. Volatile, or the compiler takes out both calls.
    void* volatile block = std::malloc(kHeap / 10);
    std::free(block);
}

template <typename Function>
void start(Function function) {
    std::thread(function).detach();
}

int run_counter(Counter& counter) {
    counter.idle = eventfd(0, EFD_CLOEXEC);
    handle(SIGTERM, on_stop, 0);
    handle(SIGRTMIN + 3, on_timer, SA_RESTART);
    sigset_t before;
    pthread_sigmask(SIG_SETMASK, nullptr, &before);
    block_all_signals();
    start([&] { counter.produce(); });
    start([&] { counter.sleep_towards_deadlines(); });
    start([&] { counter.wait_for_timer_signals(); });
    start([&] {
        name_thread("idle", counter.tid_idle);
        counter.block_for_ever();
    });
    start([&] { counter.report_for_ever(); });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    counter.count_until_stopped();
    fmt::print("bye at {}\n", counter.count.load());
    fflush(stdout);
    _exit(0);  // the pipe ends with us, and so does the consumer
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3 || argc > 4) {
        fmt::print(stderr, "usage: counter STATE_DIR LOG_FILE [SECONDS_BETWEEN_DEADLINES]\n");
        return 2;
    }
    keep_mappings_as_they_are();
    std::array<int, 2> ends{};
    if (pipe2(ends.data(), O_CLOEXEC) != 0)
        die("pipe");
    const pid_t child = fork();
    if (child < 0)
        die("fork");
    if (child == 0) {
        close(ends[1]);
        run_consumer(argv[1], ends[0]);
    }
    close(ends[0]);
    Counter counter;
    counter.consumer = child;
    counter.pipe = ends[1];
    counter.state_file = std::string(argv[1]) + "/state.json";
    counter.deadline_period = static_cast<int64_t>((argc == 4 ? std::atof(argv[3]) : 10) * kNanoseconds);
    counter.log = open(argv[2], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (counter.log < 0)
        die(argv[2]);
    return run_counter(counter);
}
