// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <string>
#include <vector>

#include "core/base/error.h"

namespace checkpointd {

// The units that an administrator enabled: one empty file each, /etc/checkpointd/armed.d/UNIT. The files are
// the truth; nothing is remembered besides.
class ArmedUnits {
  public:
    explicit ArmedUnits(std::string dir) : dir_(std::move(dir)) {}

    bool contains(const std::string& unit) const;
    // By name.
    std::vector<std::string> list() const;
    Result<void> add(const std::string& unit) const;
    Result<void> remove(const std::string& unit) const;

  private:
    std::string dir_;
};

}  // namespace checkpointd
