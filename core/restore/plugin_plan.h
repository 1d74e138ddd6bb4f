// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/resources/file_images.h"
#include "core/restore/forest_images.h"
#include "core/restore/memory_plan.h"
#include "core/restore/program/plan.h"

namespace checkpointd {

class Plugins;

// Plans what plugins do in the tasks, but for their files (core/resources/plugin_file.h).
class PluginPlanner {
  public:
    // Moves a descriptor of ours to where the tasks inherit it.
    using Keep = std::function<Slot(const std::string& label, int fd)>;

    // Borrowed; `plugins` may be null.
    PluginPlanner(const ForestImages& forest, const FileImages& files, Plugins* plugins)
        : forest_(forest), files_(files), plugins_(plugins) {}

    // Files and mappings of the image that nobody here would bring back.
    void check(std::vector<Error>& blockers) const;
    // In the agent.
    void open_channels(const Keep& keep);
    // In a task's stage: before and after its files are there.
    void begin(const TaskRecord& task, Program& stage) const;
    PluginMappings map(const TaskRecord& task, Program& stage) const;
    // Whether plugins may leave descriptors in the tasks.
    bool is_busy() const;

  private:
    std::string path_of(const images::vma_entry& vma) const;
    void check_files(std::vector<Error>& blockers) const;
    void check_mappings(const TaskRecord& task, std::vector<Error>& blockers) const;

    const ForestImages& forest_;
    const FileImages& files_;
    Plugins* plugins_;
    std::vector<Slot> channels_;
};

}  // namespace checkpointd
