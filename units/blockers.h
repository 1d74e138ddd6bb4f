// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "core/base/error.h"

namespace checkpointd {

// What stands in the way of carrying a unit, all of it.
class Blockers {
  public:
    explicit Blockers(std::string unit) : unit_(std::move(unit)) {}
    void add(ErrorKind kind, std::string message, std::string remedy = {}) {
        found_.push_back(Error{kind, unit_, std::move(message), std::move(remedy), 0, {}});
    }
    void add(Error error) { found_.push_back(std::move(error)); }
    Result<void> result() && {
        return all_blockers(unit_, "this unit cannot be checkpointed", std::move(found_));
    }

  private:
    std::string unit_;
    std::vector<Error> found_;
};

}  // namespace checkpointd
