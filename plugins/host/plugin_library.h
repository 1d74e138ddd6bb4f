// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <chrono>
#include <string>

#include "core/base/error.h"
#include "plugins/host/plugin_file.h"
#include "plugins/plugin.h"

namespace checkpointd {

// The function that every plugin has.
inline constexpr const char* kPluginEntry = "ckptd_plugin_entry";

// One plugin's shared object, loaded. Never unloaded: drivers do not survive that.
class PluginLibrary {
  public:
    // kUnsupported where it is for another host.
    static Result<PluginLibrary> load(const PluginFile& file);

    const ckptd_plugin& table() const { return table_; }
    std::string name() const { return table_.name; }
    bool knows_setting(const std::string& name) const;
    // What it says of undo(record); nothing where it says nothing, max() where it cannot say.
    std::chrono::microseconds undo_time(const std::string& record) const;

  private:
    explicit PluginLibrary(const ckptd_plugin& table);
    ckptd_plugin table_{};  // what an older plugin does not have is null
};

}  // namespace checkpointd
