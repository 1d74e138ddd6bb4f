// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The interpreter by itself: programs made by hand, run in this process.
#include "restorer/interpreter.h"

#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/scoped_fd.h"
#include "core/restore/executor/region.h"

namespace checkpointd {
namespace {

using restorer::Interpreter;
using restorer::OpCode;
using restorer::Outcome;
using restorer::Place;

constexpr uint32_t kFloor = 300;

class InterpreterTest : public testing::Test {
  protected:
    Plan& plan() { return restore_.programs; }

    // Runs `program` and, once, maps the region for it; the plan is complete by then.
    Outcome run(const Program& program, Place place = Place::kStage) {
        if (!region_)
            map();
        return Interpreter(region_->header(), place).run(program.index());
    }

    void map() {
        constexpr size_t kSize = 1 << 20;
        void* hole = mmap(nullptr, kSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        ASSERT_NE(hole, MAP_FAILED);
        munmap(hole, kSize);
        restore_.region_base = reinterpret_cast<uint64_t>(hole);
        restore_.region_size = kSize;
        restore_.descriptor_floor = kFloor;
        auto region = Region::map(restore_, hooks_);
        ASSERT_TRUE(region) << region.error().text();
        region_.emplace(std::move(*region));
    }

    int64_t slot(Slot slot) const {
        return reinterpret_cast<int64_t*>(region_->header().slots)[slot.index];
    }

    template <typename T>
    T arena(ArenaRef ref) const {
        T value;
        std::memcpy(&value, reinterpret_cast<void*>(region_->arena() + ref.offset), sizeof(value));
        return value;
    }

    RestorePlan restore_;
    std::vector<StageHook> hooks_;
    std::optional<Region> region_;
};

TEST_F(InterpreterTest, CallsPutTheirResultsIntoSlots) {
    Program& program = plan().new_program("p");
    Slot pid = program.value("pid", SYS_getpid, {});
    program.call_expect("pid again", getpid(), SYS_getpid, {});
    Slot same = program.value("group", SYS_getpgid, {pid});
    EXPECT_EQ(run(program).error, 0);
    EXPECT_EQ(slot(pid), getpid());
    EXPECT_EQ(slot(same), getpgrp());
}

TEST_F(InterpreterTest, FailureTellsWhereAndWhy) {
    Program& program = plan().new_program("p");
    Slot pid = program.value("pid", SYS_getpid, {});
    program.call("a bad descriptor", SYS_close, {-1});
    Slot never = program.value("not reached", SYS_getpid, {});
    Outcome outcome = run(program);
    EXPECT_EQ(outcome.op, 1u);
    EXPECT_EQ(outcome.error, EBADF);
    EXPECT_EQ(slot(pid), getpid());
    EXPECT_EQ(slot(never), 0);
}

TEST_F(InterpreterTest, BestEffortGoesOn) {
    Program& program = plan().new_program("p");
    program.try_call("a bad descriptor", SYS_close, {-1});
    Slot pid = program.value("pid", SYS_getpid, {});
    EXPECT_EQ(run(program).error, 0);
    EXPECT_EQ(slot(pid), getpid());
}

TEST_F(InterpreterTest, AnotherResultThanExpectedIsAnError) {
    Program& program = plan().new_program("p");
    program.call_expect("pid", getpid() + 1, SYS_getpid, {});
    EXPECT_EQ(run(program).error, ERANGE);
}

TEST_F(InterpreterTest, StoresFourOrEightBytes) {
    Program& program = plan().new_program("p");
    ArenaRef four = plan().object(uint64_t{0xffffffffffffffff});
    ArenaRef eight = plan().object(uint64_t{0});
    Slot pid = program.value("pid", SYS_getpid, {});
    program.store(pid, four, 4);
    program.store(pid, eight, 8);
    Program& wrong = plan().new_program("three bytes");
    wrong.append(OpCode::kStore, {}, {pid, eight, 3});
    EXPECT_EQ(run(program).error, 0);
    auto number = static_cast<uint64_t>(getpid());
    EXPECT_EQ(arena<uint64_t>(four), 0xffffffff00000000 | number);
    EXPECT_EQ(arena<uint64_t>(eight), number);
    EXPECT_EQ(run(wrong).error, EINVAL);
}

TEST_F(InterpreterTest, DescriptorsMoveAboveTheFloor) {
    Program& program = plan().new_program("p");
    ArenaRef pair = plan().reserve(8);
    program.call("pipe", SYS_pipe2, {pair, 0});
    Slot reader = program.descriptor_from("reader", pair);
    Slot null = program.descriptor("null", SYS_openat,
                                   {AT_FDCWD, plan().string("/dev/null"), O_RDONLY});
    EXPECT_EQ(run(program).error, 0);
    for (Slot moved : {reader, null}) {
        EXPECT_GE(slot(moved), kFloor);
        EXPECT_EQ(fcntl(static_cast<int>(slot(moved)), F_GETFD), FD_CLOEXEC);
        close(static_cast<int>(slot(moved)));
    }
    EXPECT_EQ(fcntl(arena<int>(pair), F_GETFD), -1) << "the low number is free again";
    close(arena<int>(ArenaRef{pair.offset + 4}));
}

TEST_F(InterpreterTest, PointersInTheArenaAreAddresses) {
    Program& program = plan().new_program("p");
    ArenaRef text = plan().bytes("content", 7);
    iovec vector{nullptr, 7};
    ArenaRef where = plan().object(vector);
    plan().point(where, text);
    ScopedFd file(memfd_create("test", 0));
    program.call_expect("write", 7, SYS_writev, {file.get(), where, 1});
    EXPECT_EQ(run(program).error, 0);
    char got[8] = {};
    EXPECT_EQ(pread(file.get(), got, 7, 0), 7);
    EXPECT_STREQ(got, "content");
}

TEST_F(InterpreterTest, PagesAreReadAcrossManyPieces) {
    constexpr size_t kPieces = 3000;  // more than one preadv takes
    std::vector<uint16_t> memory(2 * kPieces);
    std::vector<uint16_t> content(kPieces);
    std::vector<iovec> vectors;
    for (size_t i = 0; i < kPieces; i++) {
        content[i] = static_cast<uint16_t>(i + 1);
        vectors.push_back({&memory[2 * i], sizeof(uint16_t)});
    }
    ScopedFd file(memfd_create("test", 0));
    constexpr size_t kBytes = kPieces * sizeof(uint16_t);
    constexpr size_t kBefore = 10;
    ASSERT_EQ(pwrite(file.get(), content.data(), kBytes, kBefore), static_cast<ssize_t>(kBytes));
    Program& program = plan().new_program("p");
    Slot fd = program.value("file", SYS_dup, {file.get()});
    program.read_pages("all", fd, plan().bytes(vectors.data(), kPieces * sizeof(iovec)), kPieces,
                       kBefore);
    Program& beyond = plan().new_program("beyond the end");
    beyond.read_pages("too much", fd, plan().bytes(vectors.data(), kPieces * sizeof(iovec)), kPieces,
                      kBefore + 2);
    EXPECT_EQ(run(program).error, 0);
    for (size_t i = 0; i < kPieces; i++) {
        ASSERT_EQ(memory[2 * i], content[i]);
        ASSERT_EQ(memory[2 * i + 1], 0);
    }
    EXPECT_EQ(run(beyond).error, ENODATA);
    close(static_cast<int>(slot(fd)));
}

TEST_F(InterpreterTest, ForkedTaskRunsItsProgram) {
    Program& child = plan().new_program("child");
    child.exit("leaves", 42);
    Program& program = plan().new_program("p");
    Slot pid = program.fork_task("child", 0, child, 0);
    ASSERT_EQ(run(program).error, 0);
    int status = 0;
    ASSERT_EQ(waitpid(static_cast<pid_t>(slot(pid)), &status, 0), slot(pid));
    EXPECT_EQ(WEXITSTATUS(status), 42);
}

int add_one(void* context) {
    return ++*static_cast<int*>(context) == 2 ? ENOKEY : 0;
}

TEST_F(InterpreterTest, HookRunsAndMayFail) {
    int count = 0;
    hooks_.push_back({1, "sample", add_one, &count});
    Program& program = plan().new_program("p");
    program.append(OpCode::kHook, "sample", {0});
    EXPECT_EQ(run(program).error, 0);
    EXPECT_EQ(run(program).error, ENOKEY);
    EXPECT_EQ(count, 2);
}

TEST_F(InterpreterTest, OperationsOfTheOtherPlaceAreRefused) {
    Program& thread = plan().new_program("thread");
    thread.append(OpCode::kThread, "x", {1, 0, 0});
    Program& memory = plan().new_program("memory");
    memory.append(OpCode::kReplaceMemory, "x", {0});
    Program& fork = plan().new_program("fork");
    fork.append(OpCode::kForkTask, "x", {0, 0, 0});
    Program& hook = plan().new_program("hook");
    hook.append(OpCode::kHook, "x", {0});
    Program& blob = plan().new_program("blob");
    blob.append(OpCode::kEnterBlob, "x", {0, 0});
    Program& invalid = plan().new_program("invalid");
    invalid.append(OpCode::kInvalid, "x", {});
    for (Program* program : {&thread, &memory, &invalid})
        EXPECT_EQ(run(*program, Place::kStage).error, EINVAL) << program->name();
    for (Program* program : {&fork, &hook, &blob, &invalid})
        EXPECT_EQ(run(*program, Place::kBlob).error, EINVAL) << program->name();
}

TEST_F(InterpreterTest, NoSuchProgram) {
    plan().new_program("only");
    map();
    EXPECT_EQ(Interpreter(region_->header(), Place::kStage).run(1).error, EINVAL);
}

}  // namespace
}  // namespace checkpointd
