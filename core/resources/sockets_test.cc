// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Sockets of a real process, dumped while it stands, written to images, read again, planned, and made
// anew by the interpreter in another process, which then looks at them.
#include <arpa/inet.h>
#include <array>
#include <cstring>
#include <fcntl.h>
#include <functional>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/resources/files.h"
#include "core/resources/socket.h"
#include "images/constants.h"
#include "images/proto/sockets.pb.h"
#include "images/test_dir.h"
#include "restorer/interpreter.h"

namespace checkpointd {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

// Answers what is wrong, or nothing. Runs in a forked process, where EXPECT would go unseen.
using Check = std::function<std::string()>;

#define WANT(condition)                                                       \
    do {                                                                      \
        if (!(condition))                                                     \
            return fmt::format("{}:{}: {} ({})", __LINE__, #condition,        \
                               std::string("not so"), std::strerror(errno));  \
    } while (0)

// Runs `check` in a child of ours and answers what it answered.
std::string run_in_child(const Check& check) {
    std::array<int, 2> report{};
    EXPECT_EQ(pipe2(report.data(), O_CLOEXEC), 0);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int out = fcntl(report[1], F_DUPFD_CLOEXEC, 900);
        std::string text = check();
        (void)!write(out, text.data(), text.size());
        _exit(0);
    }
    close(report[1]);
    std::string answer;
    std::array<char, 4096> buffer{};
    for (ssize_t got; (got = read(report[0], buffer.data(), buffer.size())) > 0;)
        answer.append(buffer.data(), static_cast<size_t>(got));
    close(report[0]);
    int status = 0;
    waitpid(child, &status, 0);
    if (status != 0)
        answer += fmt::format(" child's status {:#x}", status);
    return answer;
}

// Moves a descriptor to the number by which victim and check know it.
bool place(int fd, int number) {
    bool done = fd >= 0 && dup2(fd, number) == number;
    if (fd != number)
        close(fd);
    return done;
}

// A process that has nothing open but /dev/null and what `prepare` opens; it stands still afterwards.
class Victim {
  public:
    explicit Victim(const std::function<bool()>& prepare) {
        std::array<int, 2> ready{};
        EXPECT_EQ(pipe2(ready.data(), O_CLOEXEC), 0);
        pid_ = fork();
        if (pid_ == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            int out = fcntl(ready[1], F_DUPFD_CLOEXEC, 900);
            int null = open("/dev/null", O_RDWR);
            for (int fd : {0, 1, 2})
                dup2(null, fd);
            close_range(3, 899, 0);
            bool done = prepare();
            (void)!write(out, done ? "y" : "n", 1);
            close(out);
            while (true)
                pause();
        }
        close(ready[1]);
        char answer = 0;
        EXPECT_EQ(read(ready[0], &answer, 1), 1);
        EXPECT_EQ(answer, 'y') << "the victim could not prepare itself";
        while (read(ready[0], &answer, 1) > 0) {
        }
        close(ready[0]);
    }
    ~Victim() { end(); }
    void end() {
        if (pid_ > 0) {
            kill(pid_, SIGKILL);
            waitpid(pid_, nullptr, 0);
        }
        pid_ = -1;
    }
    pid_t pid() const { return pid_; }

  private:
    pid_t pid_ = -1;
};

struct Dump {
    FileImages images;
    uint32_t files_id = 0;
    std::vector<Error> blockers;

    const images::unix_sk_entry* unix_at(uint32_t number) const {
        const images::file_entry* entry = at(number);
        return entry != nullptr && entry->has_usk() ? &entry->usk() : nullptr;
    }
    const images::file_entry* at(uint32_t number) const {
        for (const images::fdinfo_entry& fd : images.tables.begin()->second)
            for (const images::file_entry& file : images.files)
                if (fd.fd() == number && file.id() == fd.id())
                    return &file;
        return nullptr;
    }
    std::string blocker_text() const {
        std::string text;
        for (const Error& blocker : blockers)
            text += blocker.text() + "\n";
        return text;
    }
};

// Dumps, writes, and reads again, so that what is restored went through the files.
Dump dump(const Victim& victim, CollectOptions options = {}) {
    Dump result;
    FileCollector collector(std::move(options));
    ScopedFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, victim.pid(), 0)));
    collector.add_task({victim.pid(), victim.pid(), pidfd.get()});
    auto collected = collector.collect(victim.pid());
    EXPECT_TRUE(collected) << collected.error().text();
    auto finished = collector.finish();
    EXPECT_TRUE(finished) << finished.error().text();
    result.blockers = collector.blockers();
    result.files_id = collector.files_id(victim.pid()).value();
    images::TestDir dir;
    auto written = collector.write(dir.fd());
    EXPECT_TRUE(written) << written.error().text();
    auto read_back = read_file_images(dir.fd(), {result.files_id}, {victim.pid()});
    EXPECT_TRUE(read_back) << read_back.error().text();
    result.images = std::move(*read_back);
    return result;
}

// Runs programs of a plan as the agent and the stage do, in the calling process.
std::string execute(const Plan& plan, uint32_t floor) {
    std::vector<restorer::Op> operations;
    std::vector<restorer::ProgramRange> ranges;
    for (const Program& program : plan.programs()) {
        ranges.push_back({operations.size(), program.ops().size()});
        operations.insert(operations.end(), program.ops().begin(), program.ops().end());
    }
    std::vector<std::byte> arena = plan.arena();
    std::vector<uint64_t> slots(plan.slots());
    restorer::RegionHeader header{};
    header.operations = reinterpret_cast<uint64_t>(operations.data());
    header.programs = reinterpret_cast<uint64_t>(ranges.data());
    header.program_count = ranges.size();
    header.arena = reinterpret_cast<uint64_t>(arena.data());
    header.slots = reinterpret_cast<uint64_t>(slots.data());
    header.descriptor_floor = floor;
    restorer::Interpreter interpreter(header, restorer::Place::kStage);
    for (uint32_t index = 0; index < ranges.size(); ++index) {
        restorer::Outcome outcome = interpreter.run(index);
        if (outcome.error != 0) {
            const restorer::Op& op = operations[ranges[index].first + outcome.op];
            return fmt::format("program {} op {} ({}, nr {}): {}", index, outcome.op,
                               reinterpret_cast<const char*>(arena.data()) + op.label, op.nr,
                               std::strerror(outcome.error));
        }
    }
    // What the agent opened is closed after the stages: only the task's own numbers stay.
    close_range(floor, 899, 0);
    close_range(901, ~0u, 0);
    return "";
}

// Restores into a child and lets `check` look around there. `externals` are numbers of ours.
std::string restore(const Dump& from, const Check& check,
                    const std::map<std::string, int>& externals = {}) {
    Plan plan;
    Program& give = plan.new_program("given");
    Program& agent = plan.new_program("agent");
    FilePlanTask task;
    task.programs.pid = from.images.fs.begin()->first;
    task.programs.stage = &plan.new_program("stage");
    task.programs.late = &plan.new_program("late");
    task.files_id = from.files_id;
    FilePlanOptions options;
    for (const auto& [key, fd] : externals)
        options.externals[key] = give.descriptor(key, SYS_dup, {fd});
    FilePlanner planner(from.images, {task}, plan, agent, std::move(options));
    if (auto planned = planner.plan(); !planned)
        return planned.error().text();
    uint32_t floor = descriptor_floor(from.images).value();
    return run_in_child([&]() -> std::string {
        std::string wrong = execute(plan, floor);
        return wrong.empty() ? check() : wrong;
    });
}

std::string receive(int fd) {
    std::array<char, 4096> buffer{};
    ssize_t got = recv(fd, buffer.data(), buffer.size(), MSG_DONTWAIT);
    return got < 0 ? std::string("error: ") + std::strerror(errno)
                   : std::string(buffer.data(), static_cast<size_t>(got));
}

bool send_text(int fd, std::string_view text) {
    return send(fd, text.data(), text.size(), MSG_DONTWAIT) == static_cast<ssize_t>(text.size());
}

int option(int fd, int level, int name) {
    int value = -1;
    socklen_t size = sizeof(value);
    return getsockopt(fd, level, name, &value, &size) == 0 ? value : -1;
}

bool set_option(int fd, int level, int name, int value) {
    return setsockopt(fd, level, name, &value, sizeof(value)) == 0;
}

struct UnixName {
    sockaddr_un address{};
    socklen_t size = 0;
    explicit UnixName(const std::string& name) {
        address.sun_family = AF_UNIX;
        std::memcpy(address.sun_path, name.data(), name.size());
        size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size() +
                                      (name[0] == '\0' ? 0 : 1));
    }
    const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&address); }
};

int bound_unix(int type, const std::string& name) {
    int fd = socket(AF_UNIX, type, 0);
    UnixName address(name);
    return bind(fd, address.get(), address.size) == 0 ? fd : -1;
}

bool connect_unix(int fd, const std::string& name) {
    UnixName address(name);
    return connect(fd, address.get(), address.size) == 0;
}

std::string own_name(int fd) {
    sockaddr_un address{};
    socklen_t size = sizeof(address);
    if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0)
        return "error";
    return std::string(address.sun_path, size - offsetof(sockaddr_un, sun_path));
}

bool place_pair(int type, int first, int second) {
    std::array<int, 2> ends{};
    return socketpair(AF_UNIX, type, 0, ends.data()) == 0 && place(ends[0], first) &&
           place(ends[1], second);
}

struct Sockets : testing::Test {
    images::TestDir tmp;
};

TEST_F(Sockets, PairKeepsQueuesInBothDirectionsAndOptions) {
    for (int type : {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET}) {
        SCOPED_TRACE(type);
        Victim victim([&] {
            return place_pair(type, 40, 41) && send_text(40, "one") && send_text(40, "two") &&
                   send_text(41, "back") && set_option(40, SOL_SOCKET, SO_SNDBUF, 50000) &&
                   set_option(41, SOL_SOCKET, SO_PASSCRED, 1) &&
                   fcntl(41, F_SETFL, O_NONBLOCK) == 0;
        });
        Dump from = dump(victim);
        EXPECT_THAT(from.blocker_text(), IsEmpty());
        ASSERT_NE(from.unix_at(40), nullptr);
        EXPECT_EQ(from.unix_at(40)->peer(), from.unix_at(41)->ino());
        EXPECT_EQ(from.unix_at(40)->type(), static_cast<uint32_t>(type));
        EXPECT_EQ(from.unix_at(40)->opts().so_sndbuf(), 100000u);
        victim.end();
        EXPECT_EQ(restore(from, [&]() -> std::string {
            bool stream = type == SOCK_STREAM;
            std::string first = receive(41);
            WANT(first == (stream ? "onetwo" : "one"));
            WANT(stream || receive(41) == "two");
            WANT(receive(40) == "back");
            WANT(send_text(40, "new") && receive(41) == "new");
            WANT(option(40, SOL_SOCKET, SO_SNDBUF) == 100000);
            WANT(option(41, SOL_SOCKET, SO_PASSCRED) == 1);
            WANT(fcntl(41, F_GETFL) & O_NONBLOCK);
            WANT(!(fcntl(40, F_GETFL) & O_NONBLOCK));
            return "";
        }), "");
    }
}

TEST_F(Sockets, DumpLeavesTheVictimsQueueAsItIs) {
    std::array<int, 2> ends{};
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_DGRAM, 0, ends.data()), 0);
    Victim victim([] { return place_pair(SOCK_DGRAM, 40, 41) && send_text(40, "a") && send_text(40, "b"); });
    dump(victim);
    Dump again = dump(victim);
    ScopedFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, victim.pid(), 0)));
    ScopedFd copy(static_cast<int>(syscall(SYS_pidfd_getfd, pidfd.get(), 41, 0)));
    EXPECT_EQ(option(copy.get(), SOL_SOCKET, SO_PEEK_OFF), -1);
    EXPECT_EQ(receive(copy.get()), "a");
    EXPECT_EQ(receive(copy.get()), "b");
    close(ends[0]);
    close(ends[1]);
}

TEST_F(Sockets, LargeStreamQueueAndClosedPeer) {
    std::string big(150'000, 'x');
    for (size_t i = 0; i < big.size(); ++i)
        big[i] = static_cast<char>(i * 7);
    Victim victim([&] {
        return place_pair(SOCK_STREAM, 40, 41) && send_text(40, big) && close(40) == 0;
    });
    Dump from = dump(victim);
    EXPECT_THAT(from.blocker_text(), IsEmpty());
    victim.end();
    EXPECT_EQ(restore(from, [&]() -> std::string {
        std::string got;
        for (std::string part = receive(41); !part.empty(); part = receive(41))
            got += part;
        WANT(got == big);
        WANT(recv(41, got.data(), 1, 0) == 0);  // end of file
        return "";
    }), "");
}

TEST_F(Sockets, ShutdownOfOneDirection) {
    Victim victim([] {
        return place_pair(SOCK_STREAM, 40, 41) && send_text(40, "last") && shutdown(40, SHUT_WR) == 0;
    });
    Dump from = dump(victim);
    victim.end();
    EXPECT_EQ(restore(from, []() -> std::string {
        WANT(receive(41) == "last");
        WANT(receive(41) == "");
        WANT(send_text(41, "still") && receive(40) == "still");
        WANT(send(40, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
        return "";
    }), "");
}

TEST_F(Sockets, ListeningSocketsWithPathAndAbstractName) {
    std::string path = tmp.path() + "/listen.sock";
    std::string abstract = std::string(1, '\0') + "checkpointd-test-" + std::to_string(getpid());
    Victim victim([&] {
        return place(bound_unix(SOCK_STREAM, path), 40) && listen(40, 17) == 0 &&
               chmod(path.c_str(), 0620) == 0 && chown(path.c_str(), 12, 34) == 0 &&
               place(bound_unix(SOCK_SEQPACKET, abstract), 41) && listen(41, 3) == 0;
    });
    Dump from = dump(victim);
    EXPECT_THAT(from.blocker_text(), IsEmpty());
    ASSERT_NE(from.unix_at(40), nullptr);
    EXPECT_EQ(from.unix_at(40)->backlog(), 17u);
    EXPECT_EQ(from.unix_at(40)->state(), static_cast<uint32_t>(TCP_LISTEN));
    EXPECT_EQ(from.unix_at(40)->file_perms().mode() & 0777, 0620u);
    EXPECT_EQ(from.unix_at(41)->name(), abstract);
    victim.end();
    EXPECT_EQ(restore(from, [&]() -> std::string {
        int client = socket(AF_UNIX, SOCK_STREAM, 0);
        WANT(connect_unix(client, path) && send_text(client, "hello"));
        int server = accept(40, nullptr, nullptr);
        WANT(receive(server) == "hello");
        struct stat about {};
        WANT(stat(path.c_str(), &about) == 0 && (about.st_mode & 07777) == 0620);
        WANT(about.st_uid == 12 && about.st_gid == 34);
        int packet = socket(AF_UNIX, SOCK_SEQPACKET, 0);
        WANT(connect_unix(packet, abstract));
        WANT(own_name(41) == abstract);
        return "";
    }), "");
}

TEST_F(Sockets, RemovedPathStaysRemovedAndAnothersFileIsKept) {
    std::string path = tmp.path() + "/removed.sock";
    Victim victim([&] {
        return place(bound_unix(SOCK_STREAM, path), 40) && listen(40, 1) == 0 &&
               unlink(path.c_str()) == 0;
    });
    Dump from = dump(victim);
    ASSERT_NE(from.unix_at(40), nullptr);
    EXPECT_TRUE(from.unix_at(40)->deleted());
    victim.end();
    ScopedFd other(open(path.c_str(), O_CREAT | O_WRONLY, 0600));
    ASSERT_EQ(write(other.get(), "mine", 4), 4);
    EXPECT_EQ(restore(from, [&]() -> std::string {
        WANT(std::string(own_name(40).c_str()) == path);
        struct stat about {};
        WANT(stat(path.c_str(), &about) == 0 && S_ISREG(about.st_mode) && about.st_size == 4);
        return "";
    }), "");
}

TEST_F(Sockets, AcceptedConnectionAndOneThatStillWaits) {
    std::string path = tmp.path() + "/inside.sock";
    Victim victim([&] {
        return place(bound_unix(SOCK_STREAM, path), 40) && listen(40, 5) == 0 &&
               place(socket(AF_UNIX, SOCK_STREAM, 0), 41) && connect_unix(41, path) &&
               place(accept(40, nullptr, nullptr), 42) &&
               place(socket(AF_UNIX, SOCK_STREAM, 0), 43) && connect_unix(43, path) &&
               send_text(41, "accepted");
    });
    Dump from = dump(victim);
    EXPECT_THAT(from.blocker_text(), IsEmpty());
    EXPECT_EQ(from.unix_at(43)->peer(), from.unix_at(40)->ino());
    victim.end();
    EXPECT_EQ(restore(from, [&]() -> std::string {
        WANT(receive(42) == "accepted");
        WANT(send_text(43, "waited"));
        int server = accept(40, nullptr, nullptr);
        WANT(server >= 0 && receive(server) == "waited");
        return "";
    }), "");
}

TEST_F(Sockets, DatagramQueueOfABoundSocketAndItsSender) {
    std::string path = tmp.path() + "/dgram.sock";
    Victim victim([&] {
        return place(bound_unix(SOCK_DGRAM, path), 40) &&
               place(socket(AF_UNIX, SOCK_DGRAM, 0), 41) && connect_unix(41, path) &&
               send_text(41, "first") && send_text(41, "") && send_text(41, "third");
    });
    Dump from = dump(victim);
    EXPECT_THAT(from.blocker_text(), IsEmpty());
    victim.end();
    EXPECT_EQ(restore(from, []() -> std::string {
        WANT(receive(40) == "first");
        WANT(receive(40) == "");
        WANT(receive(40) == "third");
        WANT(send_text(41, "fourth") && receive(40) == "fourth");
        return "";
    }), "");
}

TEST_F(Sockets, DatagramSocketsThatSendToEachOther) {
    auto name = [&](int number) { return fmt::format("{}/{}.sock", tmp.path(), number); };
    Victim victim([&] {
        for (int number : {40, 41, 42, 43})
            if (!place(bound_unix(SOCK_DGRAM, name(number)), number))
                return false;
        return connect_unix(42, name(41)) && connect_unix(41, name(40)) && connect_unix(43, name(43));
    });
    Dump from = dump(victim);
    EXPECT_THAT(from.blocker_text(), IsEmpty());
    victim.end();
    EXPECT_EQ(restore(from, [&]() -> std::string {
        sockaddr_un peer{};
        socklen_t size = sizeof(peer);
        WANT(getpeername(42, reinterpret_cast<sockaddr*>(&peer), &size) == 0 && peer.sun_path == name(41));
        WANT(send_text(41, "two") && receive(40) == "two");
        WANT(send_text(43, "self") && receive(43) == "self");
        return "";
    }), "");
}

TEST_F(Sockets, DatagramSocketThatSendsToAnOutsidePath) {
    std::string path = tmp.path() + "/log.sock";
    ScopedFd log(bound_unix(SOCK_DGRAM, path));
    Victim victim([&] { return place(socket(AF_UNIX, SOCK_DGRAM, 0), 40) && connect_unix(40, path); });
    Dump from = dump(victim);
    EXPECT_THAT(from.blocker_text(), IsEmpty());
    bool outside = false;
    for (const images::file_entry& file : from.images.files)
        outside = outside || (file.has_usk() && file.usk().uflags() == images::kUnixExternal &&
                              file.usk().ino() == from.unix_at(40)->peer());
    EXPECT_TRUE(outside);
    victim.end();
    EXPECT_EQ(restore(from, []() -> std::string {
        WANT(send_text(40, "a line of log"));
        return "";
    }), "");
    EXPECT_EQ(receive(log.get()), "a line of log");
}

TEST_F(Sockets, StreamToAnOutsideSocketIsABlockerThatNamesIt) {
    std::string path = tmp.path() + "/outside.sock";
    ScopedFd server(bound_unix(SOCK_STREAM, path));
    ASSERT_EQ(listen(server.get(), 1), 0);
    Victim victim([&] { return place(socket(AF_UNIX, SOCK_STREAM, 0), 40) && connect_unix(40, path); });
    ScopedFd accepted(accept(server.get(), nullptr, nullptr));
    Dump from = dump(victim);
    ASSERT_EQ(from.blockers.size(), 1u);
    EXPECT_THAT(from.blocker_text(), HasSubstr(path));
    EXPECT_THAT(from.blocker_text(), HasSubstr("process " + std::to_string(getpid())));
}

TEST_F(Sockets, ExternalSocketsAreTakenFromTheCaller) {
    std::string path = tmp.path() + "/activated.sock";
    ScopedFd listener(bound_unix(SOCK_STREAM, path));
    ASSERT_EQ(listen(listener.get(), 9), 0);
    std::array<int, 2> journal{};
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, journal.data()), 0);
    // The victim closes everything it inherits, so it is handed copies at high numbers.
    int high_listener = fcntl(listener.get(), F_DUPFD, 950);
    int high_journal = fcntl(journal[1], F_DUPFD, 951);
    struct stat listener_stat {};
    struct stat journal_stat {};
    fstat(listener.get(), &listener_stat);
    fstat(journal[1], &journal_stat);
    Victim victim([&] { return place(high_listener, 40) && place(high_journal, 41); });
    close(high_listener);
    close(high_journal);
    std::string listener_key = socket_key(listener_stat.st_ino);
    std::string journal_key = socket_key(journal_stat.st_ino);
    CollectOptions options;
    options.externals = {listener_key, journal_key};
    Dump from = dump(victim, options);
    EXPECT_THAT(from.blocker_text(), IsEmpty());
    EXPECT_EQ(from.unix_at(40)->uflags(), images::kUnixInherit);
    victim.end();
    auto check = []() -> std::string {
        WANT(send_text(41, "to the journal"));
        WANT(option(40, SOL_SOCKET, SO_ACCEPTCONN) == 1);
        return "";
    };
    EXPECT_THAT(restore(from, check), HasSubstr("has to be given"));
    struct stat before {};
    ASSERT_EQ(stat(path.c_str(), &before), 0);
    EXPECT_EQ(restore(from, check, {{listener_key, listener.get()}, {journal_key, journal[1]}}), "");
    EXPECT_EQ(receive(journal[0]), "to the journal");
    struct stat after {};
    ASSERT_EQ(stat(path.c_str(), &after), 0);
    EXPECT_EQ(before.st_ino, after.st_ino);
    close(journal[0]);
    close(journal[1]);
}

TEST_F(Sockets, DescriptorsInAQueueAreABlocker) {
    Victim victim([] {
        if (!place_pair(SOCK_STREAM, 40, 41))
            return false;
        char byte = 'x';
        iovec data{&byte, 1};
        alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
        msghdr header{};
        header.msg_iov = &data;
        header.msg_iovlen = 1;
        header.msg_control = control.data();
        header.msg_controllen = control.size();
        cmsghdr* part = CMSG_FIRSTHDR(&header);
        part->cmsg_level = SOL_SOCKET;
        part->cmsg_type = SCM_RIGHTS;
        part->cmsg_len = CMSG_LEN(sizeof(int));
        int fd = 1;
        std::memcpy(CMSG_DATA(part), &fd, sizeof(fd));
        return sendmsg(40, &header, 0) == 1;
    });
    EXPECT_THAT(dump(victim).blocker_text(), HasSubstr("SCM_RIGHTS"));
}

// ---- inet and netlink ----------------------------------------------------------------------------

int bound_inet(int family, int type, uint16_t port, uint16_t* chosen) {
    int fd = socket(family, type, 0);
    sockaddr_storage address{};
    socklen_t size = 0;
    if (family == AF_INET) {
        sockaddr_in v4{AF_INET, htons(port), {htonl(INADDR_LOOPBACK)}, {}};
        std::memcpy(&address, &v4, size = sizeof(v4));
    } else {
        sockaddr_in6 v6{AF_INET6, htons(port), 0, in6addr_any, 0};
        std::memcpy(&address, &v6, size = sizeof(v6));
    }
    if (family == AF_INET6 && !set_option(fd, SOL_IPV6, IPV6_V6ONLY, 1))
        return -1;
    if (bind(fd, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
        getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0)
        return -1;
    std::memcpy(chosen, reinterpret_cast<char*>(&address) + 2, 2);
    *chosen = ntohs(*chosen);
    return fd;
}

bool connect_loopback(int fd, uint16_t port) {
    sockaddr_in v4{AF_INET, htons(port), {htonl(INADDR_LOOPBACK)}, {}};
    return connect(fd, reinterpret_cast<sockaddr*>(&v4), sizeof(v4)) == 0;
}

TEST_F(Sockets, TcpListenerAndUnconnectedSocket) {
    uint16_t ignored = 0;
    Victim victim([&] {
        return place(bound_inet(AF_INET, SOCK_STREAM, 0, &ignored), 40) &&
               set_option(40, SOL_TCP, TCP_NODELAY, 1) && listen(40, 33) == 0 &&
               place(socket(AF_INET, SOCK_STREAM, 0), 41) &&
               set_option(41, SOL_SOCKET, SO_KEEPALIVE, 1) &&
               set_option(41, SOL_SOCKET, SO_REUSEADDR, 1);
    });
    Dump from = dump(victim);
    EXPECT_THAT(from.blocker_text(), IsEmpty());
    ASSERT_NE(from.at(40), nullptr);
    const images::inet_sk_entry& record = from.at(40)->isk();
    EXPECT_EQ(record.state(), static_cast<uint32_t>(TCP_LISTEN));
    EXPECT_EQ(record.backlog(), 33u);
    EXPECT_EQ(record.src_addr(0), htonl(INADDR_LOOPBACK));
    uint16_t port = static_cast<uint16_t>(record.src_port());
    EXPECT_NE(port, 0);
    victim.end();
    EXPECT_EQ(restore(from, [&]() -> std::string {
        int client = socket(AF_INET, SOCK_STREAM, 0);
        WANT(connect_loopback(client, port) && send_text(client, "hi"));
        int server = accept(40, nullptr, nullptr);
        pollfd ready{server, POLLIN, 0};
        WANT(poll(&ready, 1, 60'000) == 1 && receive(server) == "hi");
        WANT(option(40, SOL_TCP, TCP_NODELAY) == 1);
        WANT(option(40, SOL_SOCKET, SO_REUSEADDR) == 0);
        WANT(option(41, SOL_SOCKET, SO_KEEPALIVE) == 1);
        WANT(option(41, SOL_SOCKET, SO_REUSEADDR) == 1);
        return "";
    }), "");
}

TEST_F(Sockets, EstablishedTcpIsABlockerThatNamesThePeer) {
    uint16_t port = 0;
    ScopedFd server(bound_inet(AF_INET, SOCK_STREAM, 0, &port));
    ASSERT_EQ(listen(server.get(), 1), 0);
    Victim victim([&] { return place(socket(AF_INET, SOCK_STREAM, 0), 40) && connect_loopback(40, port); });
    EXPECT_THAT(dump(victim).blocker_text(), HasSubstr("127.0.0.1:" + std::to_string(port)));
}

TEST_F(Sockets, UdpBoundAndConnectedInBothFamilies) {
    uint16_t ignored = 0;
    uint16_t port = 0;
    ScopedFd peer(bound_inet(AF_INET, SOCK_DGRAM, 0, &port));
    Victim victim([&] {
        return place(bound_inet(AF_INET6, SOCK_DGRAM, 0, &ignored), 40) &&
               place(bound_inet(AF_INET, SOCK_DGRAM, 0, &ignored), 41) && connect_loopback(41, port) &&
               set_option(41, SOL_IP, IP_TTL, 9);
    });
    Dump from = dump(victim);
    EXPECT_THAT(from.blocker_text(), IsEmpty());
    EXPECT_TRUE(from.at(40)->isk().v6only());
    EXPECT_EQ(from.at(41)->isk().dst_port(), port);
    victim.end();
    EXPECT_EQ(restore(from, [&]() -> std::string {
        WANT(option(40, SOL_IPV6, IPV6_V6ONLY) == 1);
        WANT(option(41, SOL_IP, IP_TTL) == 9);
        WANT(send_text(41, "datagram"));
        return "";
    }), "");
    pollfd ready{peer.get(), POLLIN, 0};
    ASSERT_EQ(poll(&ready, 1, 60'000), 1);
    EXPECT_EQ(receive(peer.get()), "datagram");
}

TEST_F(Sockets, UdpShutDownInOneDirectionOrBoth) {
    uint16_t port = 0;
    ScopedFd peer(bound_inet(AF_INET, SOCK_DGRAM, 0, &port));
    Victim victim([&] {
        for (int how : {SHUT_RD, SHUT_WR, SHUT_RDWR}) {
            uint16_t ignored = 0;
            int number = 40 + how;
            if (!place(bound_inet(AF_INET, SOCK_DGRAM, 0, &ignored), number) ||
                !connect_loopback(number, port) || shutdown(number, how) != 0)
                return false;
        }
        return true;
    });
    Dump from = dump(victim);
    EXPECT_THAT(from.blocker_text(), IsEmpty());
    victim.end();
    EXPECT_EQ(restore(from, [&]() -> std::string {
        for (int how : {SHUT_RD, SHUT_WR, SHUT_RDWR}) {
            int number = 40 + how;
            bool sends = send(number, "x", 1, MSG_NOSIGNAL) == 1;
            pollfd events{number, POLLRDHUP, 0};
            poll(&events, 1, 0);
            WANT(sends == (how == SHUT_RD));
            WANT(((events.revents & POLLRDHUP) != 0) == (how != SHUT_WR));
        }
        return "";
    }), "");
}

TEST_F(Sockets, BoundToAnAddressThatIsGone) {
    sockaddr_in6 gone{AF_INET6, htons(41234), 0, {}, 0};
    inet_pton(AF_INET6, "2001:db8::41", &gone.sin6_addr);
    Victim victim([&] {
        return place(socket(AF_INET6, SOCK_DGRAM, 0), 40) && set_option(40, SOL_IPV6, IPV6_FREEBIND, 1) &&
               bind(40, reinterpret_cast<sockaddr*>(&gone), sizeof(gone)) == 0 &&
               set_option(40, SOL_IPV6, IPV6_FREEBIND, 0);
    });
    Dump from = dump(victim);
    EXPECT_THAT(from.blocker_text(), IsEmpty());
    victim.end();
    EXPECT_EQ(restore(from, [&]() -> std::string {
        sockaddr_in6 is{};
        socklen_t size = sizeof(is);
        WANT(getsockname(40, reinterpret_cast<sockaddr*>(&is), &size) == 0);
        WANT(std::memcmp(&is.sin6_addr, &gone.sin6_addr, sizeof(is.sin6_addr)) == 0);
        WANT(option(40, SOL_IPV6, IPV6_FREEBIND) == 0);
        return "";
    }), "");
}

TEST_F(Sockets, NetlinkKeepsProtocolPortAndGroups) {
    Victim victim([] {
        sockaddr_nl address{AF_NETLINK, 0, 0, RTMGRP_LINK};
        return place(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE), 40) &&
               bind(40, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0 &&
               set_option(40, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_IPV6_IFADDR);
    });
    Dump from = dump(victim);
    EXPECT_THAT(from.blocker_text(), IsEmpty());
    ASSERT_NE(from.at(40), nullptr);
    uint32_t port = from.at(40)->nlsk().portid();
    EXPECT_EQ(from.at(40)->nlsk().groups(0), RTMGRP_LINK | 1u << (RTNLGRP_IPV6_IFADDR - 1));
    victim.end();
    EXPECT_EQ(restore(from, [&]() -> std::string {
        sockaddr_nl address{};
        socklen_t size = sizeof(address);
        WANT(getsockname(40, reinterpret_cast<sockaddr*>(&address), &size) == 0);
        WANT(address.nl_pid == port);
        WANT(address.nl_groups == (RTMGRP_LINK | 1u << (RTNLGRP_IPV6_IFADDR - 1)));
        WANT(option(40, SOL_SOCKET, SO_PROTOCOL) == NETLINK_ROUTE);
        return "";
    }), "");
}

}  // namespace
}  // namespace checkpointd
