// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <string>
#include <vector>

#include "core/base/error.h"

namespace checkpointd {

// The file of a plugin, known not to be one for CRIU: nothing of those may run, as what they want of
// their host is not here. It takes all of the file to tell, so this is what is handed on.
class PluginFile {
  public:
    // kNotFound where DIRECTORY/NAME.so is not there; kUnsupported where it is for CRIU.
    static Result<PluginFile> find(const std::string& directory, const std::string& name);

    const std::string& name() const { return name_; }
    const std::string& path() const { return path_; }

  private:
    PluginFile(std::string name, std::string path) : name_(std::move(name)), path_(std::move(path)) {}
    friend struct PluginFiles;

    std::string name_;
    std::string path_;
};

// What a directory has, sorted; nothing where it is not there.
struct PluginFiles {
    static PluginFiles list(const std::string& directory);

    std::vector<PluginFile> ours;
    std::vector<std::string> for_criu;  // paths
};

}  // namespace checkpointd
