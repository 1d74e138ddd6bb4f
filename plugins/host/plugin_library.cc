// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/host/plugin_library.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <dlfcn.h>
#include <filesystem>
#include <unistd.h>

namespace checkpointd {
namespace {

constexpr std::string_view kSuffix = ".so";
// Of the first version: a plugin that has less is none.
constexpr size_t kLeastSize = offsetof(ckptd_plugin, undo) + sizeof(ckptd_plugin::undo);
constexpr uint64_t kOffers = 0;

Result<void> check(const ckptd_plugin* table, const std::string& name, const std::string& path) {
    if (table == nullptr || table->size < kLeastSize || table->abi != CKPTD_PLUGIN_ABI)
        return fail(ErrorKind::kUnsupported, path,
                    fmt::format("is not a plugin for version {} of the interface", CKPTD_PLUGIN_ABI),
                    "install the one that was built for this checkpointd");
    if ((table->needs & ~kOffers) != 0)
        return fail(ErrorKind::kUnsupported, path, "needs more of its host than this checkpointd has",
                    "install the one that was built for this checkpointd");
    if (table->name == nullptr || name != table->name || !table->open || !table->close)
        return fail(ErrorKind::kUnsupported, path, "calls itself by another name than its file, or lacks functions");
    return {};
}

}  // namespace

PluginLibrary::PluginLibrary(const ckptd_plugin& table) {
    std::memcpy(&table_, &table, std::min<size_t>(table.size, sizeof(table_)));
}

Result<PluginLibrary> PluginLibrary::load(const std::string& directory, const std::string& name) {
    const std::string path = fmt::format("{}/{}{}", directory, name, kSuffix);
    if (name.empty() || name.find('/') != std::string::npos)
        return fail(ErrorKind::kBadInput, fmt::format("plugin '{}'", name), "is no name of a plugin");
    if (access(path.c_str(), F_OK) != 0)
        return fail(ErrorKind::kNotFound, fmt::format("plugin '{}'", name),
                    fmt::format("is not installed in {}", directory), "install it");
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (library == nullptr)
        return fail(ErrorKind::kSystem, path, fmt::format("cannot be loaded: {}", dlerror()));
    auto entry = reinterpret_cast<decltype(&ckptd_plugin_entry)>(dlsym(library, "ckptd_plugin_entry"));
    const ckptd_plugin* table = entry == nullptr ? nullptr : entry();
    CKPT_TRY(check(table, name, path));
    return PluginLibrary(*table);
}

bool PluginLibrary::knows_setting(const std::string& name) const {
    for (const char* const* known = table_.settings; known != nullptr && *known != nullptr; ++known)
        if (name == *known)
            return true;
    return false;
}

std::vector<std::string> installed_plugins(const std::string& directory) {
    std::vector<std::string> names;
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(directory, error))
        if (entry.path().extension() == kSuffix)
            names.push_back(entry.path().stem());
    std::sort(names.begin(), names.end());
    return names;
}

}  // namespace checkpointd
