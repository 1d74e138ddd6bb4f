// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <vector>

#include "core/base/scoped_fd.h"
#include "plugins/cuda/backend.h"

namespace checkpointd::cuda {

// Asks checkpointd-cuda, see helper.cc.
class HelperBackend : public Backend {
  public:
    static Result<std::unique_ptr<Backend>> open();

    Result<Answer> ask(const Request& request, Deadline deadline, int fd) override;
    bool finish_late(Deadline deadline) override;
    bool outlives_us() const override { return connection_.is_shared; }

    // Whether who is at the other end of the socket `fd` (borrowed) is a helper of our version and serves us.
    static bool answers(int fd, Deadline deadline);

  private:
    struct Connection {
        ScopedFd fd;
        bool is_shared = false;  // with the service, not with one that we started
    };
    static Result<Connection> connect();
    explicit HelperBackend(Connection connection) : connection_(std::move(connection)) {}

    Connection connection_;
    std::vector<ScopedFd> late_;  // with a call under way each
};

}  // namespace checkpointd::cuda
