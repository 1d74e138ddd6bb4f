// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <functional>
#include <map>
#include <string>
#include <sys/types.h>

#include "core/base/error.h"
#include "core/base/scoped_fd.h"
#include "service/protocol.h"

namespace checkpointd {

// The daemon's end of the private socket on which workers report: datagrams, because progress is only
// ever the latest word, and because a worker's next one reaches a daemon that was started anew.
class WorkerChannel {
  public:
    // Says whether process `pid` is the worker of `job`.
    using Verify = std::function<bool(pid_t pid, uint32_t job)>;
    using Sink = std::function<void(const ProgressMessage&)>;

    // Binds `path` (mode 0600), in the place of what an earlier daemon left there.
    static Result<WorkerChannel> open(const std::string& path, Verify verify, Sink sink);

    int fd() const { return socket_.get(); }
    // Takes what is there; datagrams from anybody else, or damaged ones, are dropped.
    void receive();

  private:
    WorkerChannel(ScopedFd socket, Verify verify, Sink sink)
        : socket_(std::move(socket)), verify_(std::move(verify)), sink_(std::move(sink)) {}
    bool receive_one();
    bool is_known(pid_t pid, uint32_t job);

    ScopedFd socket_;
    Verify verify_;
    Sink sink_;
    std::map<uint32_t, pid_t> known_;  // job -> its worker, once verified
};

// The worker's end. Sending never blocks and never fails the job: without a daemon nobody listens.
class ProgressSender {
  public:
    explicit ProgressSender(std::string path);
    void send(const ProgressMessage& message) const;

  private:
    ScopedFd socket_;
    std::string path_;
};

// Name of a job's transient unit.
std::string worker_unit_name(uint32_t job);
// Is `pid` in the cgroup of the job's unit?
bool is_worker_of(pid_t pid, uint32_t job);

}  // namespace checkpointd
