// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <map>
#include <string>
#include <sys/types.h>
#include <vector>

#include "core/base/scoped_fd.h"
#include "service/event_loop.h"
#include "service/manager.h"

namespace checkpointd {

// Helpers as short-lived children: the worker's binary with another verb. Their standard output is the
// answer (an error as JSON when they exit non-zero), their standard error goes where ours goes. They end
// with the daemon; all their work may be done again.
class ProcessHelpers : public Helpers {
  public:
    ProcessHelpers(EventLoop& loop, std::string program, std::string store_dir)
        : loop_(loop), program_(std::move(program)), store_dir_(std::move(store_dir)) {}
    ~ProcessHelpers() override;

    void recover(const std::string& job_dir, Done done) override;
    void explain(const std::string& image_id, Done done) override;
    void remove_image(const std::string& image_id, Done done) override;
    void check_enable(const std::string& unit, Done done) override;

  private:
    struct Child {
        pid_t pid = 0;
        std::string output;
        Done done;
        ScopedFd pipe;
    };
    void run(std::vector<std::string> args, Done done);
    Result<Child> spawn(std::vector<std::string> args);
    void readable(int fd);
    void ended(int fd, std::string failure);

    EventLoop& loop_;
    std::string program_;
    std::string store_dir_;
    std::map<int, Child> children_;  // by the descriptor of their pipe
};

}  // namespace checkpointd
