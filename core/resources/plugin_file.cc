// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Files that plugins carry: the engine knows which descriptors lead to them, and what every open file has.
#include "core/resources/plugin_file.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fmt/core.h>

#include "core/resources/kinds.h"
#include "core/resources/open_file.h"
#include "core/restore/barriers.h"
#include "core/restore/program/plugin_records.h"

namespace checkpointd {

namespace {

// Plugins are asked before any kind is.
bool recognise(const OpenFile&) {
    return false;
}

Result<void> dump(const OpenFile& file, FileDumpContext&, images::file_entry&) {
    return fail(ErrorKind::kInternal, file.object, "is dumped by its plugin");
}

Result<std::optional<Slot>> plan(const images::file_entry& entry, FilePlanContext& context) {
    if (!entry.has_ext() || entry.ext().id() != entry.id())
        return fail(ErrorKind::kBadImage, fmt::format("file {}", entry.id()), "is a plugin's, and its record is another's");
    context.made_by_plugin(entry.id());
    return std::nullopt;
}

Program& program_of(const TaskPrograms& task) {
    return task.plugins != nullptr ? *task.plugins : *task.stage;
}

std::string label_of(const images::ext_file_entry& entry) {
    return fmt::format("file {} of {}", entry.id(),
                       entry.has_plugin() ? fmt::format("plugin '{}'", entry.plugin()) : "a plugin");
}

void dup_to(Program& program, const std::string& label, Slot fd, const Installed& where) {
    program.call(fmt::format("{}: fd {}", label, where.number), SYS_dup3,
                 {fd, where.number, where.descriptor_flags & FD_CLOEXEC ? O_CLOEXEC : 0});
}

// What every open file has. Nobody knows whether it has a position.
void settle(const images::ext_file_entry& entry, const std::string& label, Slot fd, Program& program) {
    if (entry.flags() & O_PATH)
        return;
    if (entry.has_flags())
        program.call(label, SYS_fcntl, {fd, F_SETFL, entry.flags() & kSettableFlags});
    if (entry.pos() != 0)
        program.try_call(label, SYS_lseek, {fd, entry.pos(), SEEK_SET});
    if (entry.fown().signum() != 0)
        program.call(label, SYS_fcntl, {fd, F_SETSIG, entry.fown().signum()});
}

// All files of a task at once, because they may wait for each other. What the plugin calls each stays open as well,
// until the mappings are made.
void make_files(const std::vector<const PluginFilePlan*>& files, Plan& plan) {
    const TaskPrograms& maker = *files.front()->maker;
    Program& program = program_of(maker);
    std::vector<PluginFileRecord> records(files.size());
    for (size_t i = 0; i < files.size(); i++)
        records[i].id = files[i]->entry->id();
    const ArenaRef table = plan.bytes(records.data(), records.size() * sizeof(PluginFileRecord));
    auto place = [&](size_t i, size_t member) { return ArenaRef{table.offset + i * sizeof(PluginFileRecord) + member}; };
    for (size_t i = 0; i < files.size(); i++)
        if (files[i]->entry->has_plugin())
            plan.point(place(i, offsetof(PluginFileRecord, plugin)), plan.string(files[i]->entry->plugin()));
    program.barrier("plugins make files", kPluginFiles);
    program.append(restorer::OpCode::kPlugins, fmt::format("pid {} plugins' files", maker.pid),
                   {PluginStep::kRestoreFiles, table, files.size()});
    std::vector<Slot> made;
    for (size_t i = 0; i < files.size(); i++)
        made.push_back(program.descriptor_at(fmt::format("pid {} {}", maker.pid, label_of(*files[i]->entry)),
                                             place(i, offsetof(PluginFileRecord, fd))));
    for (size_t i = 0; i < files.size(); i++) {
        const std::string label = fmt::format("pid {} {}", maker.pid, label_of(*files[i]->entry));
        settle(*files[i]->entry, label, made[i], program);
        for (const Installed& where : files[i]->numbers)
            dup_to(program, label, made[i], where);
    }
}

// From the maker, where the number is known by now.
void take_over(const PluginFilePlan& file, const Installed& where) {
    Program& program = program_of(*where.task);
    const std::string label = fmt::format("pid {} {}", where.task->pid, label_of(*file.entry));
    const Slot maker = program.descriptor(label, SYS_pidfd_open, {file.maker->pid, 0});
    const Slot fd = program.descriptor(label, SYS_pidfd_getfd, {maker, file.numbers.front().number, 0});
    dup_to(program, label, fd, where);
    program.call(label, SYS_close, {fd});
    program.call(label, SYS_close, {maker});
}

}  // namespace

void plan_plugin_files(const std::vector<PluginFilePlan>& files, Plan& plan) {
    std::map<TaskPrograms*, std::vector<const PluginFilePlan*>> of_task;
    for (const PluginFilePlan& file : files)
        of_task[file.maker].push_back(&file);
    for (const auto& [maker, own] : of_task)
        make_files(own, plan);
    std::set<TaskPrograms*> waiting;
    for (const PluginFilePlan& file : files)
        for (const Installed& where : file.others) {
            if (waiting.insert(where.task).second)
                program_of(*where.task).barrier("plugins' files are there", kPluginFilesMade);
            take_over(file, where);
        }
}

images::file_entry plugin_file_entry(const OpenFile& file, uint32_t id, const std::string& plugin, pid_t pid) {
    images::file_entry entry;
    entry.set_type(images::EXT);
    entry.set_id(id);
    images::ext_file_entry& own = *entry.mutable_ext();
    own.set_id(id);
    own.set_plugin(plugin);
    own.set_pid(static_cast<uint32_t>(pid));
    own.set_flags(file.flags);
    own.set_pos(file.pos);
    put_owner(file, *own.mutable_fown());
    return entry;
}

const FileKind kPluginFileKind{images::EXT, "file of a plugin", recognise, dump, plan};

}  // namespace checkpointd
