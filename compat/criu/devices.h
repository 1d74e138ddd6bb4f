// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <memory>
#include <string>

#include "compat/criu/guardian.h"
#include "compat/criu/log.h"
#include "compat/criu/options.h"
#include "plugins/host/plugins.h"

namespace checkpointd::criu {

// What carries the devices of one dump or restore. Made before there are threads.
class Devices {
  public:
    // Of all plugins in the directory.
    static Result<Devices> of_dump(const Options& options, const Log& log, int image_dir_fd);
    // Of those that the image needs.
    static Result<Devices> of_restore(const Options& options, const Log& log, int image_dir_fd);

    // Null: none are needed.
    Plugins* plugins() const { return plugins_.get(); }
    // The tasks are not in our hands any more: undoes what plugins could not. The answer has what
    // fails of that, too.
    Result<void> end(Result<void> outcome);

  private:
    Result<PluginOptions> prepare(const std::string& directory, PluginFiles files, const Log& log,
                                  int image_dir_fd);

    std::unique_ptr<Guardian> guardian_;
    std::unique_ptr<Plugins> plugins_;
};

// Where plugins are looked for: --libdir, or $CRIU_LIBS_DIR, and then it must be there; or where
// ours are installed.
Result<std::string> plugin_directory(const Options& options);

}  // namespace checkpointd::criu
