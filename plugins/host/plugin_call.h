// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "plugins/plugin.h"

namespace checkpointd {

// One call into a plugin, and what it says while it fails.
struct PluginCall {
    PluginCall(std::chrono::steady_clock::time_point deadline, int cancel_fd,
               std::function<void(uint64_t, uint64_t)> moved);
    PluginCall(const PluginCall&) = delete;
    PluginCall& operator=(const PluginCall&) = delete;

    // The first thing that was said decides of which kind the failure is.
    Error failure(const std::string& plugin, const char* step);

    ckptd_call raw{};
    std::function<void(uint64_t, uint64_t)> progress;
    std::vector<Error> errors;
};

}  // namespace checkpointd
