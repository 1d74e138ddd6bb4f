// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>

namespace checkpointd {

// RegionHeader::plugins. `plugins` is a Plugins*. Runs in a task that was forked from a threaded process.
int run_plugin_step(void* plugins, uint64_t step, uint64_t a, uint64_t b);

}  // namespace checkpointd
