// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A service that counts, and tells all it can see of its sandbox from inside: ids, capabilities,
// filters, limits, scheduling, what it may write, whom it sees. Not a word of it may differ after a
// restore.
//
//   sandbox-probe FOLDER          a report of lines "key value" in FOLDER/report, written anew all
//   the time sandbox-probe FOLDER narrow   only the count, with next to no system calls
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

namespace {

std::string text_of(const char* path) {
    std::ifstream in(path);
    std::ostringstream text;
    text << in.rdbuf();
    return text.str();
}

std::string words(std::string text) {
    for (char& c : text)
        if (c == '\n' || c == '\t')
            c = ' ';
    return text;
}

std::string result_of(long result) {
    return result >= 0 ? "works" : strerrorname_np(errno);
}

class Report {
  public:
    template <typename T>
    void add(const std::string& key, const T& value) {
        text_ << key << ' ' << value << '\n';
    }
    std::string text() const { return text_.str(); }

  private:
    std::ostringstream text_;
};

void add_status(Report& report) {
    std::istringstream lines(text_of("/proc/self/status"));
    for (std::string line; std::getline(lines, line);)
        for (const char* key :
             {"Uid:", "Gid:", "Groups:", "Cap", "NoNewPrivs:", "Seccomp", "Umask:"})
            if (line.starts_with(key))
                report.add("status", words(line));
}

void add_limits(Report& report) {
    for (int i = 0; i < RLIM_NLIMITS; i++) {
        rlimit limit{};
        getrlimit(static_cast<__rlimit_resource>(i), &limit);
        report.add("limit-" + std::to_string(i),
                   std::to_string(limit.rlim_cur) + " " + std::to_string(limit.rlim_max));
    }
}

void add_schedule(Report& report) {
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    sched_getaffinity(0, sizeof(cpus), &cpus);
    std::string list;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &cpus))
            list += std::to_string(cpu) + ",";
    report.add("cpus", list);
    report.add("nice", getpriority(PRIO_PROCESS, 0));
    report.add("policy", sched_getscheduler(0));
    report.add("io-priority", syscall(SYS_ioprio_get, 1, 0));
    report.add("timer-slack", prctl(PR_GET_TIMERSLACK));
    report.add("securebits", prctl(PR_GET_SECUREBITS));
    report.add("dumpable", prctl(PR_GET_DUMPABLE));
    report.add("personality", syscall(SYS_personality, 0xffffffff));
    report.add("oom-score-adj", words(text_of("/proc/self/oom_score_adj")));
}

int count_entries(const char* path) {
    DIR* dir = opendir(path);
    if (dir == nullptr)
        return -errno;
    int count = 0;
    while (readdir(dir) != nullptr)
        count++;
    closedir(dir);
    return count;
}

void add_surroundings(Report& report) {
    utsname host{};
    uname(&host);
    report.add("host", host.nodename);
    for (const char* path :
         {"/usr", "/etc", "/var/tmp", "/tmp", "/proc/sys/kernel/ns_last_pid", "/sys/kernel",
          "/sys/fs/cgroup", "/dev/null", "/dev/kmsg", "/dev/shm", "/home", "/root"})
        report.add(std::string("may-write ") + path, result_of(access(path, W_OK)));
    report.add("home", count_entries("/home"));
    report.add("sees-init", result_of(access("/proc/1/status", F_OK)));
    report.add("sees-cpuinfo", result_of(access("/proc/cpuinfo", F_OK)));
    report.add("mark", words(text_of("/tmp/sandbox-probe-mark")));
    for (const char* map : {"uid_map", "gid_map", "setgroups"})
        report.add(map, words(text_of((std::string("/proc/self/") + map).c_str())));
}

void add_abilities(Report& report) {
    int inet = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    report.add("socket inet", result_of(inet));
    if (inet >= 0)
        close(inet);
    int local = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    report.add("socket unix", result_of(local));
    if (local >= 0)
        close(local);
    void* code =
        mmap(nullptr, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    report.add("writable code", code == MAP_FAILED ? strerrorname_np(errno) : "works");
    if (code != MAP_FAILED)
        munmap(code, 4096);
    std::string interfaces = text_of("/proc/self/net/dev");
    report.add("network interfaces", std::count(interfaces.begin(), interfaces.end(), ':'));
    report.add("sethostname", result_of(syscall(SYS_sethostname, "x", -1)));
    if (const char* folder = getenv("CREDENTIALS_DIRECTORY"))
        report.add("credential", text_of((std::string(folder) + "/secret").c_str()));
}

std::atomic<unsigned long> moved[2];
std::atomic<int> tids[2];

void move(int which) {
    tids[which] = gettid();
    for (;;) {
        moved[which]++;
        usleep(20'000);
    }
}

void write_report(const std::string& folder, unsigned long count) {
    Report report;
    report.add("pid", getpid());
    for (int i = 0; i < 2; i++)
        report.add("thread", tids[i].load());
    add_status(report);
    add_limits(report);
    add_schedule(report);
    add_surroundings(report);
    add_abilities(report);
    report.add("count", std::to_string(count) + " " + std::to_string(moved[0]) + " " +
                            std::to_string(moved[1]));
    std::ofstream(folder + "/report.new") << report.text();
    rename((folder + "/report.new").c_str(), (folder + "/report").c_str());
}

[[noreturn]] void count_only(const std::string& folder) {
    int out = open((folder + "/report").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    char line[] = "count 0000000000\n";
    timespec pause{0, 50'000'000};
    for (;;) {
        for (size_t digit = sizeof(line) - 3; ++line[digit] > '9'; digit--)
            line[digit] = '0';
        if (pwrite(out, line, sizeof(line) - 1, 0) < 0)
            _exit(1);
        clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, nullptr);
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2)
        return 2;
    std::string folder = argv[1];
    if (argc > 2)
        count_only(folder);
    std::ofstream("/tmp/sandbox-probe-mark") << "written at the start";
    std::thread first(move, 0), second(move, 1);
    for (unsigned long count = 1;; count++) {
        if (tids[0] != 0 && tids[1] != 0)
            write_report(folder, count);
        usleep(100'000);
    }
}
