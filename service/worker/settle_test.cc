// SPDX-License-Identifier: LGPL-2.1-or-later
#include "service/worker/settle.h"

#include <csignal>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "images/test_dir.h"

namespace checkpointd {
namespace {

using images::ImageState;

// Sleeps until it is killed; may stay a zombie for a while.
class Original {
  public:
    Original() : pid_(fork()) {
        if (pid_ == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (;;) pause();
        }
    }
    Original(const Original&) = delete;
    Original& operator=(const Original&) = delete;
    ~Original() {
        ::kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
    }
    pid_t pid() const { return pid_; }
    void kill() const { ::kill(pid_, SIGKILL); }

  private:
    pid_t pid_;
};

class Settle : public ::testing::Test {
  protected:
    Settle() : store_(images::ImageStore::open(dir_.path() + "/store", true).value()) {
        add_settle_undo_kinds(table_);
        journal_.emplace(Journal::create(dir_.path() + "/journal", table_).value());
    }

    void commit_image() {
        auto pending = store_.begin(id_);
        images::CommitOptions options;
        options.sync = false;
        auto info = images::local_image_info().value();
        info.unit = id_.unit;
        ASSERT_TRUE(images::ImageStore::commit(std::move(*pending), info, options));
    }

    images::TestDir dir_;
    UndoTable table_;
    images::ImageStore store_;
    std::optional<Journal> journal_;
    images::ImageId id_ = images::ImageStore::new_id("x.service").value();
};

TEST_F(Settle, PendingSnapshotGoesWhateverBecameOfItsOriginal) {
    ASSERT_TRUE(settle_snapshot(*journal_, store_.path(), id_));
    commit_image();
    ASSERT_TRUE(journal_->rollback());
    EXPECT_FALSE(store_.get(id_));
}

TEST_F(Settle, ReadySnapshotStays) {
    ASSERT_TRUE(settle_snapshot(*journal_, store_.path(), id_));
    commit_image();
    ASSERT_TRUE(store_.set_state(id_, ImageState::kReady, ""));
    ASSERT_TRUE(journal_->rollback());
    EXPECT_EQ(store_.get(id_)->state, ImageState::kReady);
}

TEST_F(Settle, ImageOfALivingOriginalGoes) {
    Original original;
    ASSERT_TRUE(settle_checkpoint(*journal_, store_.path(), id_, original.pid()));
    commit_image();
    ASSERT_TRUE(journal_->rollback());
    EXPECT_FALSE(store_.get(id_));
}

// It was killed and still has its PID: nobody has waited for it, or it has not come to its end yet.
TEST_F(Settle, ImageOfADyingOriginalIsTheOnlyCopy) {
    Original original;
    ASSERT_TRUE(settle_checkpoint(*journal_, store_.path(), id_, original.pid()));
    commit_image();
    original.kill();
    ASSERT_TRUE(journal_->rollback());
    EXPECT_EQ(store_.get(id_)->state, ImageState::kReady);
}

TEST_F(Settle, RestoredAndAliveMeansConsumed) {
    commit_image();
    ASSERT_TRUE(store_.set_state(id_, ImageState::kReady, ""));
    Original restored;
    ASSERT_TRUE(settle_restore(*journal_, store_.path(), {id_}, restored.pid()));
    ASSERT_TRUE(journal_->rollback());
    EXPECT_EQ(store_.get(id_)->state, ImageState::kConsumed);
}

// The death of its tracer kills a restored task that may not run yet.
TEST_F(Settle, RestoredAndDyingLeavesTheImageReady) {
    commit_image();
    ASSERT_TRUE(store_.set_state(id_, ImageState::kReady, ""));
    Original restored;
    ASSERT_TRUE(settle_restore(*journal_, store_.path(), {id_}, restored.pid()));
    restored.kill();
    ASSERT_TRUE(journal_->rollback());
    EXPECT_EQ(store_.get(id_)->state, ImageState::kReady);
}

}  // namespace
}  // namespace checkpointd
