// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "core/base/error.h"

namespace checkpointd::cli {

// Options of CheckpointUnit and RestoreUnit; what is not set is not sent.
struct CallOptions {
    std::optional<std::string> mode;
    std::optional<bool> sync;
    std::optional<uint64_t> timeout_usec;
    std::optional<std::string> fault;
};

// A job while it is watched.
struct JobView {
    std::string state;
    std::string phase;
    double progress = 0;
    uint64_t bytes = 0;
    uint64_t bytes_total = 0;
};

// A blocking client of org.checkpointd1. Answers are JSON values with the names of the D-Bus API, because
// all that crctl does with them is to print them.
class Client {
  public:
    using json = nlohmann::json;

    // Connects to the system bus; the daemon itself is started by the first call.
    static Result<Client> connect();
    Client(Client&&) noexcept;
    ~Client();

    Result<std::string> checkpoint(const std::string& unit, const CallOptions& options);
    Result<std::string> restore(const std::string& target, const CallOptions& options);
    Result<void> enable(const std::string& unit);
    Result<void> disable(const std::string& unit);
    Result<json> units();
    Result<json> images();
    Result<json> image(const std::string& id);
    Result<void> remove(const std::string& id, bool force);
    Result<std::string> explain(const std::string& id);
    Result<json> jobs();
    Result<void> cancel(const std::string& job_path);
    Result<std::string> policy(const std::string& unit);
    Result<void> reload_policy();

    // Waits till the job has ended and returns its properties. `changed` is called for each change.
    // `interrupted` is called when `interrupt_fd` (a signalfd, or -1) is readable.
    Result<json> wait(const std::string& job_path, const std::function<void(const JobView&)>& changed,
                      int interrupt_fd, const std::function<void()>& interrupted);

  private:
    struct Impl;
    explicit Client(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

// "/org/checkpointd1/job/ID"
std::string job_path(uint32_t id);

}  // namespace checkpointd::cli
