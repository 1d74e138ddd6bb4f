// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <string>

#include <map>
#include <vector>

#include "core/resources/kind.h"

namespace checkpointd {

// The record of a file that a plugin took; its owner's PID is already that of the images. `pid`: the task's, likewise.
images::file_entry plugin_file_entry(const OpenFile& file, uint32_t id, const std::string& plugin, pid_t pid);

// How a plugin's file comes to its descriptors.
struct PluginFilePlan {
    const images::ext_file_entry* entry;
    TaskPrograms* maker;             // the task in which it is made
    std::vector<Installed> numbers;  // in the maker's table of descriptors; not empty
    std::vector<Installed> others;   // in others
};

void plan_plugin_files(const std::vector<PluginFilePlan>& files, Plan& plan);

}  // namespace checkpointd
