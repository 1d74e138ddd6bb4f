// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/restore/image_plugins.h"

#include "core/restore/restore.h"

namespace checkpointd {

Result<std::unique_ptr<Plugins>> plugins_for_image(PluginOptions options,
                                                   Plugins::Deadline deadline) {
    CKPT_ASSIGN(const auto listed, plugins_of_image(options.image_dir_fd));
    CKPT_ASSIGN(auto plugins, Plugins::for_restore(std::move(options), listed));
    CKPT_TRY(plugins->probe({}, deadline));
    return plugins;
}

}  // namespace checkpointd
