// SPDX-License-Identifier: LGPL-2.1-or-later
#include "plugins/host/plugin_library.h"

#include <dlfcn.h>
#include <algorithm>
#include <cstring>

namespace checkpointd {
namespace {

// Of the first version: a plugin that has less is none.
constexpr size_t kLeastSize = offsetof(ckptd_plugin, undo) + sizeof(ckptd_plugin::undo);
constexpr uint64_t kOffers = CKPTD_NEEDS_CONTENTS;

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

Result<PluginLibrary> PluginLibrary::load(const PluginFile& file) {
    const std::string& path = file.path();
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (library == nullptr)
        return fail(ErrorKind::kSystem, path, fmt::format("cannot be loaded: {}", dlerror()));
    auto entry = reinterpret_cast<decltype(&ckptd_plugin_entry)>(dlsym(library, kPluginEntry));
    const ckptd_plugin* table = entry == nullptr ? nullptr : entry();
    CKPT_TRY(check(table, file.name(), path));
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

}  // namespace checkpointd
