// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/restore/plugin_plan.h"

#include <algorithm>
#include <cstddef>

#include <fmt/core.h>

#include "core/resources/regular.h"
#include "core/restore/program/plugin_records.h"
#include "images/constants.h"
#include "plugins/host/plugins.h"

namespace checkpointd {

namespace {

bool is_plugins(const images::vma_entry& vma) {
    return (vma.status() & images::kVmaPlugin) != 0;
}

// Of a record that says whose it is; null: any plugin's.
template <typename Record>
const char* name_or_any(const Record& record) {
    return record.has_plugin() ? record.plugin().c_str() : nullptr;
}

template <typename Record>
Error nobodys(std::string object, const Record& record) {
    return Error{ErrorKind::kUnsupported, std::move(object),
                 record.has_plugin() ? fmt::format("was carried by plugin '{}', which is not at hand", record.plugin())
                                     : "was carried by a plugin, and none at hand brings such things back",
                 "install the plugin, allow it in plugins: of the policy, and restore by checkpointd", 0, {}};
}

}  // namespace

std::string PluginPlanner::path_of(const images::vma_entry& vma) const {
    const images::file_entry* file = find_file(files_, static_cast<uint32_t>(vma.shmid()));
    return file == nullptr ? std::string() : file->reg().name();
}

void PluginPlanner::check_files(std::vector<Error>& blockers) const {
    for (const auto& [table, entries] : files_.tables)
        for (const images::fdinfo_entry& entry : entries) {
            const images::file_entry* file = find_file(files_, entry.id());
            if (file == nullptr || file->type() != images::EXT)
                continue;
            if (plugins_ == nullptr || !plugins_->restores_files(name_or_any(file->ext())))
                blockers.push_back(nobodys(fmt::format("file {} (fd {})", entry.id(), entry.fd()), file->ext()));
        }
}

void PluginPlanner::check_mappings(const TaskRecord& task, std::vector<Error>& blockers) const {
    for (const images::vma_entry& vma : task.mm.vmas())
        if (is_plugins(vma) && (plugins_ == nullptr || !plugins_->restores_mappings(name_or_any(vma))))
            blockers.push_back(
                nobodys(fmt::format("pid {} {:#x}-{:#x} ({})", task.pid(), vma.start(), vma.end(), path_of(vma)), vma));
}

void PluginPlanner::check(std::vector<Error>& blockers) const {
    check_files(blockers);
    for (const TaskRecord& task : forest_.tasks)
        if (!task.zombie())
            check_mappings(task, blockers);
}

bool PluginPlanner::is_busy() const {
    return plugins_ != nullptr && !plugins_->empty();
}

void PluginPlanner::open_channels(const Keep& keep) {
    for (int end : is_busy() ? plugins_->channels() : std::vector<int>())
        channels_.push_back(keep("plugins' channel", end));
}

void PluginPlanner::begin(const TaskRecord& task, Program& stage) const {
    for (size_t i = 0; i < channels_.size(); i++)
        stage.append(restorer::OpCode::kPlugins, fmt::format("pid {} plugins' channel", task.pid()),
                     {PluginStep::kUseChannel, i, channels_[i]});
    if (is_busy() && plugins_->has_in_task())
        stage.append(restorer::OpCode::kPlugins, fmt::format("plugins in pid {}", task.pid()), {PluginStep::kInTask});
}

PluginMappings PluginPlanner::map(const TaskRecord& task, Program& stage) const {
    std::vector<const images::vma_entry*> vmas;
    for (const images::vma_entry& vma : task.mm.vmas())
        if (is_plugins(vma))
            vmas.push_back(&vma);
    if (vmas.empty())
        return {};
    Plan& plan = stage.plan();
    std::vector<PluginMappingRecord> records;
    for (const images::vma_entry* vma : vmas)
        records.push_back({.start = vma->start(), .end = vma->end(), .offset = vma->pgoff(), .prot = vma->prot(),
                           .flags = vma->flags()});
    const ArenaRef table = plan.bytes(records.data(), records.size() * sizeof(PluginMappingRecord));
    auto place = [&](size_t i, size_t member) {
        return ArenaRef{table.offset + i * sizeof(PluginMappingRecord) + member};
    };
    for (size_t i = 0; i < vmas.size(); i++) {
        plan.point(place(i, offsetof(PluginMappingRecord, path)), plan.string(path_of(*vmas[i])));
        if (vmas[i]->has_plugin())
            plan.point(place(i, offsetof(PluginMappingRecord, plugin)), plan.string(vmas[i]->plugin()));
    }
    stage.append(restorer::OpCode::kPlugins, fmt::format("pid {} plugins' mappings", task.pid()),
                 {PluginStep::kUpdateMappings, table, vmas.size()});
    PluginMappings mappings;
    for (size_t i = 0; i < vmas.size(); i++) {
        const std::string label = fmt::format("pid {} {:#x}-{:#x} ({})", task.pid(), vmas[i]->start(), vmas[i]->end(),
                                              path_of(*vmas[i]));
        const Slot fd = stage.descriptor_at(label, place(i, offsetof(PluginMappingRecord, fd)));
        mappings[vmas[i]->start()] = {fd, stage.load(label, place(i, offsetof(PluginMappingRecord, offset)))};
    }
    return mappings;
}

}  // namespace checkpointd
