// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Against the other implementation of the format: what it wrote we read and write back byte by byte, and
// its tool decodes what we write. Needs CRIU 4 or newer (CRIU_PEER, CRIT_PEER or PATH); skips otherwise.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/io.h"
#include "images/image_dir.h"
#include "images/proto/inventory.pb.h"
#include "images/proto/files.pb.h"
#include "images/records.h"
#include "images/test_dir.h"

namespace checkpointd::images {
namespace {

struct Output {
    int status = -1;
    std::string text;
};

Output shell(const std::string& command) {
    Output output;
    FILE* pipe = popen((command + " 2>&1").c_str(), "r");
    std::array<char, 4096> buffer{};
    while (size_t got = fread(buffer.data(), 1, buffer.size(), pipe))
        output.text.append(buffer.data(), got);
    output.status = pclose(pipe);
    return output;
}

// The peer's command, or nothing where there is none of version 4 or newer.
std::string peer(const char* variable, const char* fallback) {
    const char* named = getenv(variable);
    std::string command = named != nullptr ? named : fallback;
    Output version = shell(command + " --version");
    auto digit = version.text.find_first_of("0123456789");
    bool new_enough = version.status == 0 && digit != std::string::npos &&
                      version.text[digit] >= '4' && version.text[digit] <= '9';
    return new_enough ? command : "";
}

// A process with something in most kinds of image files; it says that it is ready by closing `ready`.
[[noreturn]] void be_dumped(int ready) {
    setsid();
    int null = open("/dev/null", O_RDWR);
    for (int fd : {0, 1, 2})
        dup2(null, fd);
    std::array<int, 2> ends{};
    if (pipe(ends.data()) != 0 || write(ends[1], "in the pipe", 11) != 11 ||
        socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()) != 0 ||
        send(ends[1], "in the queue", 12, 0) != 12 || eventfd(7, 0) < 0)
        _exit(1);
    char name[] = "/tmp/checkpointd-ghost-XXXXXX";
    int ghost = mkstemp(name);
    if (unlink(name) != 0 || write(ghost, "no name", 7) != 7)
        _exit(1);
    auto* shared = static_cast<char*>(mmap(nullptr, 1 << 16, PROT_READ | PROT_WRITE,
                                           MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    shared[5000] = 1;
    close(ready);
    while (true)
        pause();
}

pid_t start_victim() {
    std::array<int, 2> ready{};
    EXPECT_EQ(pipe2(ready.data(), O_CLOEXEC), 0);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(ready[0]);
        be_dumped(ready[1]);
    }
    close(ready[1]);
    char byte = 0;
    EXPECT_EQ(read(ready[0], &byte, 1), 0);
    close(ready[0]);
    return child;
}

void expect_same_bytes(const ImageDir& theirs, const ImageDir& ours, const ImageName& name) {
    auto reader = theirs.open_image(name.type, name.id);
    ASSERT_TRUE(reader) << reader.error().text();
    auto writer = ours.create(name.type, name.id);
    ASSERT_TRUE(writer) << writer.error().text();
    auto copied = visit_records(*reader, name.type, [&](const auto& record, auto payload) {
        EXPECT_TRUE(writer->record(record));
        return writer->payload(payload.data(), payload.size());
    });
    ASSERT_TRUE(copied) << copied.error().text();
    ASSERT_TRUE(writer->finish());
    std::string file = image_name(name.type, name.id);
    EXPECT_EQ(read_file(theirs.fd(), file).value(), read_file(ours.fd(), file).value()) << file;
}

TEST(Interop, WhatThePeerWroteComesBackByteByByte) {
    std::string criu = peer("CRIU_PEER", "criu");
    if (criu.empty() || geteuid() != 0)
        GTEST_SKIP() << "no CRIU 4 or newer here, or not root";
    TestDir theirs;
    TestDir ours;
    pid_t victim = start_victim();
    Output dump = shell(criu + " dump -v1 -t " + std::to_string(victim) + " -D " + theirs.path());
    kill(victim, SIGKILL);
    waitpid(victim, nullptr, 0);
    ASSERT_EQ(dump.status, 0) << dump.text;
    ImageDir from = *ImageDir::open(AT_FDCWD, theirs.path());
    ImageDir to = *ImageDir::open(AT_FDCWD, ours.path());
    int compared = 0;
    auto names = from.list();
    ASSERT_TRUE(names);
    for (const ImageName& name : *names) {
        if (image_type(name.type).shape == ImageShape::kRaw)
            continue;
        expect_same_bytes(from, to, name);
        ++compared;
    }
    EXPECT_GE(compared, 15);
    // Contents, not only bytes.
    auto queues = to.open_image(ImageType::kPipesData);
    ASSERT_TRUE(queues);
    auto entry = queues->expect<pipe_data_entry>();
    ASSERT_TRUE(entry);
    EXPECT_EQ(queues->payload(entry->bytes()).value(), "in the pipe");
}

TEST(Interop, ThePeersToolDecodesWhatWeWrite) {
    std::string crit = peer("CRIT_PEER", "crit");
    if (crit.empty())
        GTEST_SKIP() << "no crit of CRIU 4 or newer here";
    TestDir tmp;
    ImageDir dir = *ImageDir::open(AT_FDCWD, tmp.path());
    pstree_entry task;
    task.set_pid(4711);
    task.set_ppid(1);
    task.set_pgid(4711);
    task.set_sid(815);
    task.add_threads(4711);
    ASSERT_TRUE(dir.write_one(ImageType::kPstree, 0, task));
    auto writer = dir.create(ImageType::kPipesData);
    pipe_data_entry pipe;
    pipe.set_pipe_id(3);
    pipe.set_bytes(5);
    ASSERT_TRUE(writer->record(pipe));
    ASSERT_TRUE(writer->payload("hello", 5));
    ASSERT_TRUE(writer->finish());
    Output tree = shell(crit + " decode -i " + tmp.path() + "/pstree.img");
    EXPECT_EQ(tree.status, 0);
    EXPECT_THAT(tree.text, testing::HasSubstr("4711"));
    EXPECT_THAT(tree.text, testing::HasSubstr("815"));
    Output data = shell(crit + " decode -i " + tmp.path() + "/pipes-data.img");
    EXPECT_EQ(data.status, 0);
    EXPECT_THAT(data.text, testing::HasSubstr("aGVsbG8="));  // "hello" in base64
}

}  // namespace
}  // namespace checkpointd::images
