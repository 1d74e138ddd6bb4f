// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <chrono>
#include <string>
#include <string_view>

#include "compat/criu/options.h"
#include "core/base/scoped_fd.h"
#include "core/base/steps.h"

namespace checkpointd::criu {

// The log file that runtimes and zdtm expect: it exists once an action was started, and a line with
// "Error" is what they show when it failed.
class Log {
  public:
    static Result<Log> open(const Options& options);

    void error(const Error& error) const;
    // Written from verbosity 3 on.
    void info(std::string_view line) const;

  private:
    Log(ScopedFd fd, int verbosity) : fd_(std::move(fd)), verbosity_(verbosity) {}
    void line(std::string_view prefix, std::string_view text) const;

    ScopedFd fd_;
    int verbosity_;
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// Logs each step, and ends the job at its deadline.
class LoggedSteps : public Steps {
  public:
    LoggedSteps(const Log& log, std::optional<std::chrono::seconds> timeout);
    Result<void> enter(std::string_view step) override;
    void giving_back(std::chrono::microseconds most) override;
    std::chrono::steady_clock::time_point deadline() const override {
        return deadline_.value_or(std::chrono::steady_clock::time_point::max());
    }
    // None where --timeout gives none.
    std::optional<std::chrono::steady_clock::time_point> given_deadline() const {
        return deadline_;
    }

  private:
    const Log& log_;
    std::optional<std::chrono::steady_clock::time_point> deadline_;
};

}  // namespace checkpointd::criu
