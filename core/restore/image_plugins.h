// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <memory>

#include "core/base/error.h"
#include "plugins/host/plugins.h"

namespace checkpointd {

// The plugins that the image behind `options.image_dir_fd` needs, each of which has found that it
// can be restored here. What is missing is told before anything begins.
Result<std::unique_ptr<Plugins>> plugins_for_image(PluginOptions options,
                                                   Plugins::Deadline deadline);

}  // namespace checkpointd
