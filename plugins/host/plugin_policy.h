// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <map>
#include <optional>
#include <string>

namespace checkpointd {

// What a policy says of one plugin. Of what it does not say the plugin decides; it is enabled unless switched off.
struct PluginPolicy {
    std::optional<bool> enabled;
    std::map<std::string, std::string> settings;  // the plugin alone knows which there are

    bool is_enabled() const { return enabled.value_or(true); }
    // What `upper` says wins.
    void lay_over(const PluginPolicy& upper) {
        if (upper.enabled)
            enabled = upper.enabled;
        for (const auto& [key, value] : upper.settings)
            settings[key] = value;
    }
    bool operator==(const PluginPolicy&) const = default;
};

}  // namespace checkpointd
