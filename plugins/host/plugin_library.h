// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "plugins/plugin.h"

namespace checkpointd {

// One plugin's shared object, loaded. Never unloaded: drivers do not survive that.
class PluginLibrary {
  public:
    // kNotFound where DIRECTORY/NAME.so is not there; kUnsupported where it is for another host.
    static Result<PluginLibrary> load(const std::string& directory, const std::string& name);

    const ckptd_plugin& table() const { return table_; }
    std::string name() const { return table_.name; }
    bool knows_setting(const std::string& name) const;
    // What it says of undo(record); nothing where it says nothing, max() where it cannot say.
    std::chrono::microseconds undo_time(const std::string& record) const;

  private:
    explicit PluginLibrary(const ckptd_plugin& table);
    ckptd_plugin table_{};  // what an older plugin does not have is null
};

// Names of the plugins in a directory, sorted; none where it is not there. Those for CRIU are not
// among them.
std::vector<std::string> installed_plugins(const std::string& directory);
// Those that are for CRIU, which has an interface of its own: of no use here.
std::vector<std::string> plugins_for_criu(const std::string& directory);

}  // namespace checkpointd
