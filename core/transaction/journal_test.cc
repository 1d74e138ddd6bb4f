// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/transaction/journal.h"

#include <csignal>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/io.h"
#include "core/transaction/recorded_process.h"
#include "core/transaction/undo_kinds.h"

namespace checkpointd {
namespace {

namespace fs = std::filesystem;

class JournalTest : public ::testing::Test {
  protected:
    void SetUp() override {
        char name[] = "/tmp/journal-test-XXXXXX";
        ASSERT_NE(mkdtemp(name), nullptr);
        base_ = name;
        dir_ = base_ + "/job";
        table_.add("test.note", [this](const UndoArgs& args) -> Result<void> {
            seen_.push_back(args);
            if (fail_on_ && !args.empty() && args[0] == *fail_on_)
                return fail(ErrorKind::kSystem, args[0], "told to fail");
            return {};
        });
    }
    void TearDown() override { fs::remove_all(base_); }

    // Runs `body` on a new journal in a child that is then killed: what a dead job leaves.
    template <typename Body>
    void dead_job(Body body) {
        pid_t child = fork();
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            auto journal = Journal::create(dir_, table_);
            if (!journal || !body(*journal))
                _exit(1);
            kill(getpid(), SIGKILL);
        }
        int status = 0;
        waitpid(child, &status, 0);
        ASSERT_TRUE(WIFSIGNALED(status)) << "the child's body failed";
    }

    std::string base_, dir_;
    UndoTable table_;
    std::vector<UndoArgs> seen_;
    std::optional<std::string> fail_on_;
};

TEST_F(JournalTest, ItIsKnownHowLongReplayMayTake) {
    using std::chrono::microseconds;
    EXPECT_EQ(Journal::replay_time(dir_, table_), microseconds(0)) << "there is none";
    table_.add("test.slow", [](const UndoArgs&) { return Result<void>(); },
               [](const UndoArgs& args) { return args[0] == "endless" ? microseconds::max() : microseconds(std::stoi(args[0])); });
    dead_job([](Journal& journal) {
        auto gone = journal.add("test.slow", {"endless"});
        return journal.add("test.note", {"one"}) && journal.add("test.slow", {"40"}) && journal.add("test.slow", {"2"}) &&
               journal.rollback_time() == microseconds::max() && gone && journal.drop(*gone) &&
               journal.rollback_time() == microseconds(42);
    });
    EXPECT_EQ(Journal::replay_time(dir_, table_), microseconds(42));
}

TEST_F(JournalTest, ReplayRunsPendingUndosNewestFirst) {
    dead_job([](Journal& journal) {
        auto first = journal.add("test.note", {"one", ""});
        auto second = journal.add("test.note", {"two", "a b%\n\xff"});
        auto third = journal.add("test.note", {});
        return first && second && third && journal.drop(*third).has_value();
    });
    ASSERT_TRUE(Journal::replay(dir_, table_));
    EXPECT_EQ(seen_, (std::vector<UndoArgs>{{"two", "a b%\n\xff"}, {"one", ""}}));
    EXPECT_FALSE(fs::exists(dir_));
    ASSERT_TRUE(Journal::replay(dir_, table_));
    EXPECT_EQ(seen_.size(), 2u) << "a second replay has nothing to do";
}

TEST_F(JournalTest, TornLastRecordIsIgnoredAtEveryLength) {
    dead_job([](Journal& journal) {
        return journal.add("test.note", {"whole"}) && journal.add("test.note", {"torn", "x"});
    });
    std::string text = *read_file(AT_FDCWD, dir_ + "/undo");
    size_t first_line = text.find('\n') + 1;
    for (size_t size = first_line; size < text.size(); ++size) {
        auto records = Journal::parse(std::string_view(text).substr(0, size));
        ASSERT_EQ(records.size(), 1u) << size;
        EXPECT_EQ(records[0].args[0], "whole");
    }
    EXPECT_EQ(Journal::parse(text).size(), 2u);
    fs::resize_file(dir_ + "/undo", text.size() - 3);
    ASSERT_TRUE(Journal::replay(dir_, table_));
    EXPECT_EQ(seen_, (std::vector<UndoArgs>{{"whole"}}));
}

TEST_F(JournalTest, FailedUndoStaysAndOthersRun) {
    dead_job([](Journal& journal) {
        return journal.add("test.note", {"one"}) && journal.add("test.note", {"two"}) &&
               journal.add("test.note", {"three"});
    });
    fail_on_ = "two";
    auto failed = Journal::replay(dir_, table_);
    ASSERT_FALSE(failed);
    EXPECT_EQ(failed.error().causes.size(), 1u);
    EXPECT_EQ(seen_.size(), 3u);
    // The interrupted replay left a torn line of its own: the next one still reads the journal.
    std::ofstream(dir_ + "/undo", std::ios::app) << "drop 2";
    seen_.clear();
    fail_on_.reset();
    ASSERT_TRUE(Journal::replay(dir_, table_));
    EXPECT_EQ(seen_, (std::vector<UndoArgs>{{"two"}}));
}

TEST_F(JournalTest, LiveJobIsNotReplayed) {
    int ready[2];
    ASSERT_EQ(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        auto journal = Journal::create(dir_, table_);
        if (journal && journal->add("test.note", {"alive"}))
            (void)!write(ready[1], "x", 1);
        pause();
    }
    char byte = 0;
    close(ready[1]);
    ASSERT_EQ(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    auto refused = Journal::replay(dir_, table_);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind, ErrorKind::kConflict);
    EXPECT_TRUE(seen_.empty());
    EXPECT_TRUE(Journal::replay(dir_, table_));
    EXPECT_EQ(seen_.size(), 1u);
}

// A replay that is at work is waited for; what it has done is not done again.
TEST_F(JournalTest, OneOfTwoReplaysDoesTheWork) {
    {
        auto journal = Journal::create(dir_, table_);
        ASSERT_TRUE(journal && journal->add("test.note", {"once"}));
    }
    int began[2], go_on[2];
    ASSERT_EQ(pipe(began), 0);
    ASSERT_EQ(pipe(go_on), 0);
    pid_t first = fork();
    if (first == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        UndoTable slow;
        slow.add("test.note", [&](const UndoArgs&) -> Result<void> {
            char byte = 'x';
            return write(began[1], &byte, 1) == 1 && read(go_on[0], &byte, 1) == 1
                       ? Result<void>()
                       : fail_errno("pipe", "cannot wait");
        });
        _exit(Journal::replay(dir_, slow) ? 0 : 1);
    }
    char byte = 0;
    close(began[1]);
    ASSERT_EQ(read(began[0], &byte, 1), 1);
    EXPECT_FALSE(Journal::replay(dir_, table_)) << "without patience";
    EXPECT_EQ(write(go_on[1], &byte, 1), 1);
    EXPECT_TRUE(Journal::replay(dir_, table_, std::chrono::minutes(1)));
    int status = -1;
    waitpid(first, &status, 0);
    for (int fd : {began[0], go_on[0], go_on[1]})
        close(fd);
    EXPECT_EQ(status, 0);
    EXPECT_TRUE(seen_.empty());
    EXPECT_FALSE(fs::exists(dir_));
}

TEST_F(JournalTest, RollbackAndCloseWithinTheJob) {
    auto journal = Journal::create(dir_, table_);
    ASSERT_TRUE(journal) << journal.error().text();
    ASSERT_FALSE(Journal::create(dir_, table_)) << "two jobs may not share a journal";
    ASSERT_TRUE(journal->add("test.note", {"one"}));
    auto two = journal->add("test.note", {"two"});
    EXPECT_FALSE(journal->close());
    ASSERT_TRUE(journal->undo(*two));
    ASSERT_TRUE(journal->undo(*two)) << "undone once is enough";
    ASSERT_TRUE(journal->rollback());
    EXPECT_EQ(seen_, (std::vector<UndoArgs>{{"two"}, {"one"}}));
    EXPECT_TRUE(journal->close());
    EXPECT_FALSE(fs::exists(dir_));
}

TEST_F(JournalTest, UnknownKindIsRefusedAndKept) {
    auto journal = Journal::create(dir_, table_);
    ASSERT_TRUE(journal);
    auto refused = journal->add("nobody.knows", {});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind, ErrorKind::kInternal);
}

TEST_F(JournalTest, CoreKindsKillRemoveAndRespectIdentity) {
    add_core_undo_kinds(table_);
    fs::create_directories(base_ + "/tree/a/b");
    std::ofstream(base_ + "/tree/a/file") << "x";
    fs::create_symlink("/etc", base_ + "/tree/a/link");
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;)
            pause();
    }
    auto journal = Journal::create(dir_, table_);
    ASSERT_TRUE(journal);
    ASSERT_TRUE(undo_by_killing(*journal, child));
    ASSERT_TRUE(undo_by_removing(*journal, base_ + "/tree"));
    ASSERT_TRUE(undo_by_thawing(*journal, base_ + "/no-such-cgroup"));
    // Same PID, other start time: not ours, must survive.
    ASSERT_TRUE(journal->add("core.kill-process", {std::to_string(getpid()), "1"}));
    auto done = journal->rollback();
    ASSERT_TRUE(done) << done.error().text();
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    EXPECT_FALSE(fs::exists(base_ + "/tree"));
    EXPECT_TRUE(fs::exists("/etc/passwd"));
    EXPECT_TRUE(journal->close());
}

TEST(RecordedProcess, ComesBackFromArguments) {
    UndoArgs args{"unit"};
    ASSERT_TRUE(RecordedProcess::append(args, getpid()));
    auto process = RecordedProcess::parse(args, 1);
    ASSERT_TRUE(process);
    EXPECT_EQ(process->pid, getpid());
    EXPECT_TRUE(process->lives().value());
    for (const UndoArgs& wrong : {UndoArgs{"1"}, UndoArgs{"x", "1"}, UndoArgs{"1", "2x"}, UndoArgs{"", ""}})
        EXPECT_FALSE(RecordedProcess::parse(wrong, 0));
}

}  // namespace
}  // namespace checkpointd
