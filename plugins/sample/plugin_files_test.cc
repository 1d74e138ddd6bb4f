// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What plugins own of the tasks' descriptors and mappings, through the engine. The victim is two processes: terminals
// of their own, and one that they share, under several numbers; a connection to us; and memory that is the plugin's.
#include <array>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <gmock/gmock.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <sched.h>
#include <set>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/ranges.h>

#include "core/inject/seize.h"
#include "core/kernel/proc_maps.h"
#include "core/kernel/proc_task.h"
#include "images/constants.h"
#include "images/image_dir.h"
#include "images/proto/files.pb.h"
#include "images/proto/memory.pb.h"
#include "plugins/sample/sample_test_util.h"

namespace checkpointd {
namespace {

using images::ImageType;
using testing::Contains;
using testing::HasSubstr;
using testing::Not;

constexpr size_t kPage = 4096;
constexpr int kSharedNumber = 57;
constexpr int kOwnNumber = 91;
constexpr int kPeerNumber = 90;

// ---- in the victim

void open_terminal(int number, unsigned short rows, unsigned short columns) {
    const int fd = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    const winsize size{rows, columns, 0, 0};
    if (fd < 0 || ioctl(fd, TIOCSWINSZ, &size) != 0 || dup2(fd, number) != number || close(fd) != 0)
        _exit(2);
}

std::string describe(int fd) {
    winsize size{};
    if (ioctl(fd, TIOCGWINSZ, &size) != 0)
        return fmt::format("{}:{}", fd, errno);
    return fmt::format("{}:{}x{}{}{}", fd, size.ws_row, size.ws_col, fcntl(fd, F_GETFL) & O_NONBLOCK ? " nonblock" : "",
                       fcntl(fd, F_GETFD) & FD_CLOEXEC ? " cloexec" : "");
}

void report(const std::string& path, const std::string& text) {
    const int fd = open((path + ".part").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || write(fd, text.data(), text.size()) != static_cast<ssize_t>(text.size()) || close(fd) != 0 ||
        rename((path + ".part").c_str(), path.c_str()) != 0)
        _exit(3);
}

[[noreturn]] void be_the_child(const std::string& folder) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    open_terminal(kOwnNumber, 55, 66);
    close(kPeerNumber);
    if (dup2(kSharedNumber, 3) != 3)
        _exit(4);
    while (true) {
        report(folder + "/child", fmt::format("{} {} {}", describe(3), describe(kSharedNumber), describe(kOwnNumber)));
        usleep(1000);
    }
}

struct Memory {
    volatile uint32_t count;
    char text[2 * kPage - sizeof(uint32_t)];
};

Memory* map_memory(const std::string& path) {
    const int fd = open(path.c_str(), O_RDWR | O_CREAT, 0600);
    if (fd < 0 || ftruncate(fd, 4 * kPage) != 0)
        _exit(5);
    void* at = mmap(nullptr, sizeof(Memory), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 2 * kPage);
    close(fd);
    auto* memory = static_cast<Memory*>(at);
    std::memset(memory->text, 'm', sizeof(memory->text));
    return memory;
}

// What its only writer sees of it, once for each number.
bool is_whole(Memory& memory, uint32_t& count) {
    const bool whole = memory.count == count && memory.text[0] == 'm' &&
                       std::memcmp(memory.text, memory.text + 1, sizeof(memory.text) - 1) == 0;
    memory.count = ++count;
    return whole;
}

void connect_to(const std::string& path) {
    sockaddr_un peer{};
    peer.sun_family = AF_UNIX;
    path.copy(peer.sun_path, sizeof(peer.sun_path) - 1);
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(fd, reinterpret_cast<sockaddr*>(&peer), sizeof(peer)) != 0 || dup2(fd, kPeerNumber) < 0 || close(fd) != 0)
        _exit(6);
}

void answer_peer() {
    char byte;
    if (recv(kPeerNumber, &byte, 1, MSG_DONTWAIT) == 1 && send(kPeerNumber, &++byte, 1, 0) != 1)
        _exit(7);
}

// It shares its parent's descriptors, and has memory of its own.
[[noreturn]] void be_the_sharer(const std::string& folder, Memory* of_parent) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    Memory* memory = map_memory(folder + "/child.memory");
    munmap(of_parent, sizeof(*of_parent));
    open_terminal(kOwnNumber, 55, 66);
    for (uint32_t count = 0;; usleep(1000))
        report(folder + "/child", fmt::format("{} {} {}", describe(kSharedNumber), describe(kOwnNumber),
                                              is_whole(*memory, count) ? "whole" : "broken"));
}

// ---- the test's side

class PluginFiles : public SampleTest {
  protected:
    void SetUp() override {
        if (access("/dev/ptmx", R_OK | W_OK) != 0)
            GTEST_SKIP() << "there are no terminals here";
        std::filesystem::create_directory(folder_);
        listener_ = ScopedFd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        sockaddr_un own{};
        own.sun_family = AF_UNIX;
        (folder_ + "/peer").copy(own.sun_path, sizeof(own.sun_path) - 1);
        ASSERT_EQ(bind(listener_.get(), reinterpret_cast<sockaddr*>(&own), sizeof(own)), 0);
        ASSERT_EQ(listen(listener_.get(), 5), 0);
        SampleTest::SetUp();
        if (IsSkipped())
            return;
        wait_for([&] { return file_exists(folder_ + "/child"); });
        ScopedFd connection = accept_one();
        expect_answer(connection);
    }

    [[noreturn]] void run_victim() override {
        open_terminal(kSharedNumber, 33, 44);
        fcntl(kSharedNumber, F_SETFL, O_RDWR | O_NONBLOCK);
        connect_to(folder_ + "/peer");
        if (fork() == 0)
            be_the_child(folder_);
        fcntl(kSharedNumber, F_SETFD, FD_CLOEXEC);
        open_terminal(kOwnNumber, 77, 88);
        Memory* memory = map_memory(folder_ + "/some.memory");
        use_device(folder_, [this, memory, count = uint32_t{0}]() mutable {
            report(folder_ + "/parent", fmt::format("{} {} {}", describe(kSharedNumber), describe(kOwnNumber),
                                                    is_whole(*memory, count) ? "whole" : "broken"));
            answer_peer();
        });
    }

    ScopedFd accept_one() {
        pollfd wait{listener_.get(), POLLIN, 0};
        EXPECT_EQ(poll(&wait, 1, 60'000), 1) << "nobody connects";
        return ScopedFd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    }
    // Of tasks that came to nothing.
    void forget_connections() {
        for (pollfd wait{listener_.get(), POLLIN, 0}; poll(&wait, 1, 0) == 1;)
            accept_one();
    }
    // From the program.
    static void expect_answer(const ScopedFd& connection) {
        char byte = 'x';
        ASSERT_EQ(send(connection.get(), &byte, 1, 0), 1);
        pollfd wait{connection.get(), POLLIN, 0};
        ASSERT_EQ(poll(&wait, 1, 60'000), 1);
        ASSERT_EQ(recv(connection.get(), &byte, 1, 0), 1);
        EXPECT_EQ(byte, 'y');
    }

    pid_t child() const {
        auto family = read_process_tree(pid_);
        return family && family->size() == 2 ? family->back() : -1;
    }
    static std::string numbers_of(pid_t pid) {
        auto numbers = read_descriptor_list(pid);
        return numbers ? fmt::format("{}", fmt::join(*numbers, " ")) : numbers.error().line();
    }
    static bool is_same_file(pid_t a, int fd_a, pid_t b, int fd_b) {
        return syscall(SYS_kcmp, a, b, KCMP_FILE, fd_a, fd_b) == 0;
    }
    void wait_for_reports() {
        unlink((folder_ + "/parent").c_str());
        unlink((folder_ + "/child").c_str());
        wait_for([&] { return file_exists(folder_ + "/parent") && file_exists(folder_ + "/child"); });
    }
    // What the program sees of itself.
    virtual void expect_whole() {
        wait_for_reports();
        EXPECT_EQ(content_of(folder_ + "/parent"), "57:33x44 nonblock cloexec 91:77x88 whole");
        EXPECT_EQ(content_of(folder_ + "/child"), "3:33x44 nonblock 57:33x44 nonblock 91:55x66");
        // It has others open for moments, for its reports.
        wait_for([&] { return numbers_of(pid_) == "0 1 2 57 90 91"; });
        wait_for([&] { return numbers_of(child()) == "0 1 2 3 57 91"; });
        EXPECT_TRUE(is_same_file(pid_, kSharedNumber, child(), 3));
        EXPECT_TRUE(is_same_file(child(), kSharedNumber, child(), 3));
        EXPECT_FALSE(is_same_file(pid_, kOwnNumber, child(), kOwnNumber));
        expect_running_and_unparked();
    }
    std::optional<ProcMapping> memory_of(pid_t pid) const {
        auto mappings = read_maps(pid);
        for (const ProcMapping& mapping : mappings.value_or(std::vector<ProcMapping>()))
            if (mapping.name.find(".memory") != std::string::npos)
                return mapping;
        return std::nullopt;
    }
    std::unique_ptr<Plugins> for_restore(const std::string& failing = {}) {
        unlink((folder_ + "/terminals").c_str());
        auto plugins = Plugins::for_restore(options(failing), Names{"sample"});
        return plugins ? std::move(*plugins) : nullptr;
    }
    void restore_and_check() {
        auto plugins = for_restore();
        auto built = build(plugins.get());
        ASSERT_TRUE(built) << built.error().text();
        ASSERT_TRUE(built->commit());
        expect_answer(accept_one());
        expect_whole();
    }
    // Nothing of the forest.
    void expect_nothing_left() {
        wait_for([&] { return kill(pid_, 0) != 0 && kill(child_before_, 0) != 0; });  // init reaps in its own time
    }
    void take_down() {
        child_before_ = child();
        dump_and_kill();
        expect_nothing_left();
    }
    images::ImageDir image_dir() const {
        return images::ImageDir::adopt(ScopedFd(fcntl(image_.get(), F_DUPFD_CLOEXEC, 0)), "image");
    }

    ScopedFd listener_;
    pid_t child_before_ = 0;
};

TEST_F(PluginFiles, ComeBackWithTheProcesses) {
    expect_whole();
    const auto before = memory_of(pid_);
    ASSERT_TRUE(before);
    take_down();
    auto files = image_dir().read_all<images::file_entry>(ImageType::kFiles);
    ASSERT_TRUE(files);
    EXPECT_EQ(std::count_if(files->begin(), files->end(), [](const auto& file) { return file.type() == images::EXT; }), 4);
    const Names dumped = log();
    EXPECT_EQ(std::count(dumped.begin(), dumped.end(), "dump_file"), 4);
    EXPECT_EQ(std::count(dumped.begin(), dumped.end(), "handle_vma"), 1);

    ASSERT_NO_FATAL_FAILURE(restore_and_check());
    const auto after = memory_of(pid_);
    ASSERT_TRUE(after);
    EXPECT_EQ(after->start, before->start);
    EXPECT_EQ(after->offset, before->offset + kPage);
    EXPECT_EQ(after->prot, before->prot);
    EXPECT_TRUE(after->shared);
    EXPECT_THAT(after->name, testing::EndsWith("some.memory.new"));
    // The program goes on in the new file.
    const uint32_t seen = [&] {
        const std::string bytes = content_of(folder_ + "/some.memory.new");
        uint32_t count = 0;
        std::memcpy(&count, bytes.data() + 3 * kPage, sizeof(count));
        return count;
    }();
    EXPECT_GT(seen, 3u);
}

TEST_F(PluginFiles, GoDownAgainAfterThat) {
    take_down();
    ASSERT_NO_FATAL_FAILURE(restore_and_check());
    clear_image();
    std::filesystem::rename(folder_ + "/some.memory.new", folder_ + "/other.memory");  // as the plugin knows them
    take_down();
    restore_and_check();
}

// What CRIU writes has neither the plugin's name nor the rest of what we add.
TEST_F(PluginFiles, OfAnImageThatSaysNotWhoseTheyAre) {
    take_down();
    auto dir = image_dir();
    auto files = dir.read_all<images::file_entry>(ImageType::kFiles);
    auto memory = dir.read_one<images::mm_entry>(ImageType::kMm, static_cast<uint64_t>(pid_));
    ASSERT_TRUE(files && memory);
    unlinkat(dir.fd(), "files.img", 0);
    unlinkat(dir.fd(), fmt::format("mm-{}.img", pid_).c_str(), 0);
    auto writer = dir.create(ImageType::kFiles);
    for (images::file_entry& file : *files) {
        if (file.type() == images::EXT) {
            file.mutable_ext()->clear_plugin();
            file.mutable_ext()->clear_pid();
        }
        ASSERT_TRUE(writer->record(file));
    }
    ASSERT_TRUE(writer->finish());
    for (images::vma_entry& vma : *memory->mutable_vmas())
        vma.clear_plugin();
    ASSERT_TRUE(dir.write_one(ImageType::kMm, static_cast<uint64_t>(pid_), *memory));
    restore_and_check();
}

// Of two processes with one table of descriptors (clone(2), CLONE_FILES).
class PluginFilesOfOneTable : public PluginFiles {
  protected:
    [[noreturn]] void run_victim() override {
        open_terminal(kSharedNumber, 33, 44);
        connect_to(folder_ + "/peer");
        Memory* memory = map_memory(folder_ + "/some.memory");
        if (syscall(SYS_clone, CLONE_FILES | SIGCHLD, nullptr, nullptr, nullptr, nullptr) == 0)
            be_the_sharer(folder_, memory);
        use_device(folder_, [this, memory, count = uint32_t{0}]() mutable {
            report(folder_ + "/parent", fmt::format("{} {} {}", describe(kSharedNumber), describe(kOwnNumber),
                                                    is_whole(*memory, count) ? "whole" : "broken"));
            answer_peer();
        });
    }
    void expect_whole() override {
        wait_for_reports();
        EXPECT_EQ(content_of(folder_ + "/parent"), "57:33x44 91:55x66 whole");
        EXPECT_EQ(content_of(folder_ + "/child"), "57:33x44 91:55x66 whole");
        wait_for([&] { return numbers_of(pid_) == "0 1 2 57 90 91"; });
        EXPECT_EQ(syscall(SYS_kcmp, pid_, child(), KCMP_FILES, 0, 0), 0);
        expect_running_and_unparked();
    }
};

TEST_F(PluginFilesOfOneTable, ComeBackInBoth) {
    expect_whole();
    for (int i = 0; i < 5; ++i) {
        take_down();
        ASSERT_NO_FATAL_FAILURE(restore_and_check()) << i;
        ASSERT_FALSE(HasFailure()) << i;
        for (const char* name : {"some", "child"})  // as the plugin knows them
            std::filesystem::rename(fmt::format("{}/{}.memory.new", folder_, name), fmt::format("{}/{}.memory", folder_, name));
        clear_image();
    }
}

TEST_F(PluginFilesOfOneTable, WhateverFailsInARestoreNothingIsLeft) {
    take_down();
    for (const std::string step : {"restore_file", "restore_file again", "update_vma"}) {
        auto plugins = for_restore(step);
        ASSERT_FALSE(build(plugins.get())) << step;
        expect_nothing_left();
    }
    forget_connections();
    restore_and_check();
}

TEST_F(PluginFiles, WithoutThePluginItIsRefused) {
    take_down();
    auto refused = build(nullptr);
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().text(), HasSubstr("(fd 57): was carried by plugin 'sample', which is not at hand"));
    EXPECT_THAT(refused.error().text(), HasSubstr("some.memory): was carried by plugin 'sample'"));
    expect_nothing_left();
    restore_and_check();
}

TEST_F(PluginFiles, WhateverFailsInADumpTheyGoOn) {
    for (const std::string step : {"dump_file", "handle_vma", "transfer", "complete"}) {
        auto plugins = Plugins::for_checkpoint(options(step));
        ASSERT_TRUE(plugins);
        auto held = dump(plugins->get());
        ASSERT_FALSE(held) << step;
        EXPECT_THAT(held.error().text(), HasSubstr("was told to fail")) << step;
        clear_image();
    }
    for (const std::string step : {"checkpoint.device-mappings", "checkpoint.device-files", "checkpoint.finish"}) {
        auto plugins = Plugins::for_checkpoint(options());
        ASSERT_TRUE(plugins);
        FaultAt fault(step);
        ASSERT_FALSE(dump(plugins->get(), fault)) << step;
        EXPECT_TRUE(fault.came_there()) << step;
        plugins->reset();
        clear_image();
    }
    expect_whole();
}

TEST_F(PluginFiles, WhateverFailsInARestoreNothingIsLeft) {
    take_down();
    const std::array<std::pair<const char*, const char*>, 4> failures{{
        {"restore_file", "of plugin 'sample'"},
        {"restore_file again", "waits for another file, and none is left that could still come"},
        {"update_vma", "some.memory)"},
        {"transfer", "was told to fail"},
    }};
    for (const auto& [step, told] : failures) {
        auto plugins = for_restore(step);
        auto built = build(plugins.get());
        ASSERT_FALSE(built) << step;
        EXPECT_THAT(built.error().text(), HasSubstr(told)) << step;
        expect_nothing_left();
    }
    for (const std::string step : {"restore.devices", "restore.device-files", "restore.device-files.again",
                                   "restore.device-files.share", "restore.memory", "restore.resume-devices"}) {
        auto plugins = for_restore();
        FaultAt fault(step);
        ASSERT_FALSE(build(plugins.get(), fault)) << step;
        EXPECT_TRUE(fault.came_there()) << step;
        expect_nothing_left();
    }
    forget_connections();
    restore_and_check();
}

TEST_F(PluginFiles, TheyDieWithTheWorker) {
    take_down();
    for (const std::string step : {"restore.device-files.again", "restore.device-files.share", "restore.memory"}) {
        const pid_t worker = fork();
        if (worker == 0) {
            auto plugins = for_restore();
            FaultAt fault(step, true);
            (void)build(plugins.get(), fault);
            _exit(0);
        }
        int status = 0;
        ASSERT_EQ(waitpid(worker, &status, 0), worker);
        EXPECT_TRUE(WIFSIGNALED(status)) << step;
        expect_nothing_left();
    }
    forget_connections();
    restore_and_check();
}

}  // namespace
}  // namespace checkpointd
