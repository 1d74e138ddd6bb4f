// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Forked processes with real objects, their collection, and plans run in forked processes.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <sys/types.h>
#include <vector>

#include "core/resources/files.h"

namespace checkpointd::testing {

// A directory that goes away with everything in it.
class TempDir {
  public:
    TempDir();
    ~TempDir();
    std::string operator/(const std::string& name) const { return path_ + "/" + name; }
    const std::string& path() const { return path_; }

  private:
    std::string path_;
};

// Processes that made some objects and now wait. They are killed with this object.
class World {
  public:
    World();
    ~World();
    World(const World&) = delete;

    // Forks a process with descriptors 0 to 2 on /dev/null and nothing else, runs `setup` in it and
    // waits until that is done. A setup may call fork_here().
    void start(const std::function<void()>& setup);
    // Within a setup: a further process of the forest, which runs `setup` and waits.
    void fork_here(const std::function<void()>& setup);

    const std::vector<pid_t>& pids() const { return pids_; }
    // Ends the first of them and waits until its files are closed.
    void kill_first() const;
    // Collects all, in order.
    Result<void> collect(FileCollector& collector) const;

  private:
    struct Shared {
        std::atomic<int> ready;
        std::atomic<int> started;
        pid_t pids[8];
    };
    void be(const std::function<void()>& setup);
    Shared* shared_;
    std::vector<pid_t> pids_;
};

// Writes the collected images to a directory, reads them back, plans them and runs the plan: the agent
// program in one process, then each task's programs in a process forked from it. Then `checks` run, one
// in each task and one after the other; each answers "" or what is wrong. The answer is the first thing
// that is wrong: an error of the planning, "pid N: op LABEL: ERRNO", or a check's.
std::string restore(const World& world, const FileCollector& collector,
                    std::vector<std::function<std::string()>> checks,
                    FilePlanOptions options = {});

// For checks: "" when all is well.
#define CHECK_THAT(condition)                                             \
    do {                                                                  \
        if (!(condition))                                                 \
            return std::string(#condition) + ", line " + std::to_string(__LINE__) + ", errno " + \
                   std::to_string(errno);                                 \
    } while (0)

}  // namespace checkpointd::testing
