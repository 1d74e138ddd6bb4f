// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/host/plugin_file.h"

#include <fcntl.h>
#include <unistd.h>
#include <algorithm>
#include <filesystem>

#include "core/base/io.h"
#include "plugins/host/plugin_library.h"

namespace checkpointd {
namespace {

constexpr std::string_view kSuffix = ".so";

// By the names in it. In such a one there are names that only CRIU looks for, and not the one that
// we do.
bool is_for_criu(const std::string& path) {
    auto content = read_file(AT_FDCWD, path);
    return content && content->find(kPluginEntry) == std::string::npos &&
           (content->find("CR_PLUGIN_DESC") != std::string::npos ||
            content->find("cr_plugin_") != std::string::npos);
}

}  // namespace

Result<PluginFile> PluginFile::find(const std::string& directory, const std::string& name) {
    if (name.empty() || name.find('/') != std::string::npos)
        return fail(ErrorKind::kBadInput, fmt::format("plugin '{}'", name), "is no name of a plugin");
    std::string path = fmt::format("{}/{}{}", directory, name, kSuffix);
    if (access(path.c_str(), F_OK) != 0)
        return fail(ErrorKind::kNotFound, fmt::format("plugin '{}'", name),
                    fmt::format("is not installed in {}", directory), "install it");
    if (is_for_criu(path))
        return fail(ErrorKind::kUnsupported, path,
                    "is a plugin for CRIU, which has an interface of its own",
                    "install the one of the same device for checkpointd");
    return PluginFile(name, std::move(path));
}

PluginFiles PluginFiles::list(const std::string& directory) {
    PluginFiles files;
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
        if (entry.path().extension() != kSuffix)
            continue;
        if (is_for_criu(entry.path()))
            files.for_criu.push_back(entry.path());
        else
            files.ours.push_back(PluginFile(entry.path().stem(), entry.path()));
    }
    std::sort(files.for_criu.begin(), files.for_criu.end());
    std::sort(files.ours.begin(), files.ours.end(),
              [](const PluginFile& a, const PluginFile& b) { return a.name() < b.name(); });
    return files;
}

}  // namespace checkpointd
