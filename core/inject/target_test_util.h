// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Processes that check themselves, for tests that stop, question and let go of them.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <sys/types.h>
#include <vector>

namespace checkpointd::testing {

// Shared between the test and one target process.
struct Shared {
    std::atomic<uint64_t> rounds[8];    // completed rounds, per thread of the target
    std::atomic<uint64_t> signals;      // handlers that ran
    std::atomic<uint64_t> next_value;   // expected value of the next realtime signal
    std::atomic<uint32_t> faults;       // anything that must not happen
    char fault[160];                    // the first of them
    std::atomic<uint32_t> word;         // a futex
    std::atomic<uint32_t> ready;
    std::atomic<uint32_t> spins;        // it never sleeps
    std::atomic<uint32_t> eintrs;       // epoll_wait saw EINTR without a signal
    int pipe_fd[2];
    int event_fd;

    void fail(const char* what, long value);
};

// A body of one thread: does a round a millisecond.
void count_for_ever(Shared& shared);

// A forked process that runs `body` for ever; killed and reaped when destroyed, and when the test dies.
class Target {
  public:
    // Returns when `threads` threads of it are at work.
    explicit Target(const std::function<void(Shared&)>& body, unsigned threads = 1);
    Target(const Target&) = delete;
    ~Target();

    pid_t pid() const { return pid_; }
    Shared& shared() { return *shared_; }
    // Empty when it lives and found no fault, else what is wrong with it.
    std::string complaint();
    std::string maps() const;
    // A field of /proc/PID/status ("TracerPid", "SigBlk", "State").
    std::string status(const std::string& field) const;
    // Of the file that is mapped at an address of it; 0 where nothing is.
    uint64_t inode_of(uint64_t address) const;
    // Its children, dead or alive, and whoever else has its memory: what injectors made. The test
    // itself is not told.
    std::string relatives() const;
    // Waits until it sleeps where it is meant to, or spins.
    void settle() const;
    // Waits until `condition`, at most a minute.
    static bool eventually(const std::function<bool()>& condition);

  private:
    Shared* shared_;
    uint64_t inode_ = 0;  // of that memory
    pid_t pid_;
};

// A target and how to make it do one more round.
struct Kind {
    std::string name;
    std::function<void(Shared&)> body;
    // Wakes it and returns once it did a round; its not doing so counts as a fault.
    std::function<void(Target&)> wake;
    unsigned threads = 1;
};
const std::vector<Kind>& kinds();

}  // namespace checkpointd::testing
