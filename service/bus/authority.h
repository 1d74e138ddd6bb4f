// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "dbus/compat.h"

namespace checkpointd {

// Who asks, as the bus vouches for it.
struct Caller {
    std::string name;  // unique bus name
    uid_t uid = 0;
};

// Decides whether a caller may do something: root may, everybody else asks polkit over the bus. Without
// polkit only root may.
class Authority {
  public:
    using Decision = std::function<void(Result<void>)>;
    explicit Authority(bus::Connection& connection);

    // `action` is the last part of a polkit action ("checkpoint"); `details` are shown to who is asked for
    // a password. `decide` is called at once for root, else when polkit has answered.
    void check(const Caller& caller, const std::string& action,
               const std::map<std::string, std::string>& details, Decision decide);

  private:
    std::unique_ptr<sdbus::IProxy> polkit_;
};

}  // namespace checkpointd
