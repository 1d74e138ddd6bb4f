// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/host/plugin_library.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "core/base/io.h"

namespace checkpointd {
namespace {

constexpr std::string_view kSuffix = ".so";
// Of the first version: a plugin that has less is none.
constexpr size_t kLeastSize = offsetof(ckptd_plugin, undo) + sizeof(ckptd_plugin::undo);
constexpr uint64_t kOffers = 0;
constexpr const char* kEntry = "ckptd_plugin_entry";

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

// By the names in it, because nothing of it may run: what CRIU's plugins want of their host is not
// here. In such a one there are names that only CRIU looks for, and not the one that we do.
bool is_for_criu(const std::string& path) {
    auto content = read_file(AT_FDCWD, path);
    return content && content->find(kEntry) == std::string::npos &&
           (content->find("CR_PLUGIN_DESC") != std::string::npos ||
            content->find("cr_plugin_") != std::string::npos);
}

std::vector<std::string> list(const std::string& directory, bool for_criu) {
    std::vector<std::string> names;
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(directory, error))
        if (entry.path().extension() == kSuffix && is_for_criu(entry.path()) == for_criu)
            names.push_back(entry.path().stem());
    std::sort(names.begin(), names.end());
    return names;
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
    if (is_for_criu(path))
        return fail(ErrorKind::kUnsupported, path,
                    "is a plugin for CRIU, which has an interface of its own",
                    "install the one of the same device for checkpointd");
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (library == nullptr)
        return fail(ErrorKind::kSystem, path, fmt::format("cannot be loaded: {}", dlerror()));
    auto entry = reinterpret_cast<decltype(&ckptd_plugin_entry)>(dlsym(library, kEntry));
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

std::chrono::microseconds PluginLibrary::undo_time(const std::string& record) const {
    using std::chrono::microseconds;
    if (table_.undo_usec == nullptr)
        return microseconds(0);
    const uint64_t usec = table_.undo_usec(record.c_str());
    return usec < static_cast<uint64_t>(microseconds::max().count()) ? microseconds(usec)
                                                                     : microseconds::max();
}

std::vector<std::string> installed_plugins(const std::string& directory) {
    return list(directory, false);
}

std::vector<std::string> plugins_for_criu(const std::string& directory) {
    return list(directory, true);
}

}  // namespace checkpointd
