// SPDX-License-Identifier: LGPL-2.1-or-later
#include <algorithm>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>

#include <fmt/core.h>

#include "core/resources/file_locks.h"
#include "core/resources/files.h"
#include "core/resources/plugin_file.h"

namespace checkpointd {

namespace {

// fs/file.c: sysctl_nr_open may be raised to this much on 64 bit; no image tells of more.
constexpr uint32_t kLargestNumber = 1u << 26;

}  // namespace

Result<uint32_t> descriptor_floor(const FileImages& images) {
    uint32_t largest = 2;
    for (const auto& [id, table] : images.tables)
        for (const images::fdinfo_entry& entry : table)
            largest = std::max(largest, entry.fd());
    if (largest > kLargestNumber)
        return fail(ErrorKind::kBadImage, "fdinfo", fmt::format("descriptor number {}", largest));
    return largest + 2;
}

class FilePlanner::Impl final : public FilePlanContext {
  public:
    Impl(const FileImages& images, std::vector<FilePlanTask> tasks, Plan& plan, Program& agent,
         FilePlanOptions options)
        : images_(images), tasks_(std::move(tasks)), plan_(plan), agent_(agent),
          options_(std::move(options)) {
        for (const images::file_entry& entry : images_.files)
            entries_[entry.id()] = &entry;
    }

    Result<void> plan_all();
    Result<std::optional<Slot>> place_of(uint32_t file_id);
    Result<void> plan_fs(const FilePlanTask& task, Program& program);
    bool fills_table(pid_t pid) const;
    void close_strangers(const FilePlanTask& task, uint32_t floor, Program& program);

    // FilePlanContext
    Plan& plan() override { return plan_; }
    Program& agent() override { return agent_; }
    const FileImages& images() const override { return images_; }
    Result<Slot> slot_of(uint32_t file_id) override;
    std::optional<Slot> external(const std::string& key) const override {
        auto found = options_.externals.find(key);
        return found == options_.externals.end() ? std::nullopt : std::optional(found->second);
    }
    Slot image_dir() const override { return options_.image_dir; }
    Slot reopen(Program& program, std::string_view label, Slot slot, unsigned flags) override;
    std::optional<Slot> shared_slot(std::string_view what, uint64_t id) const override {
        auto found = shared_.find({std::string(what), id});
        return found == shared_.end() ? std::nullopt : std::optional(found->second);
    }
    void share_slot(std::string_view what, uint64_t id, Slot slot) override {
        shared_[{std::string(what), id}] = slot;
    }
    void install_late(uint32_t file_id, std::function<Slot(Program&)> open) override {
        late_opens_.push_back({file_id, std::move(open)});
    }
    void made_by_plugin(uint32_t file_id) override { plugin_files_.push_back(file_id); }
    void when_installed(uint32_t file_id,
                        std::function<void(Program&, const Installed&)> emit) override {
        late_emits_.push_back({file_id, std::move(emit)});
    }
    void when_opened(std::function<void(Program&)> emit) override {
        agent_ends_.push_back(std::move(emit));
    }
    const std::vector<Installed>& installed(uint32_t file_id) const override {
        static const std::vector<Installed> none;
        auto found = installed_.find(file_id);
        return found == installed_.end() ? none : found->second;
    }
    bool has_task(pid_t pid) const override {
        return std::any_of(tasks_.begin(), tasks_.end(),
                           [&](const FilePlanTask& task) { return task.programs.pid == pid; });
    }
    const PlanClocks& clocks() const override { return options_.clocks; }
    bool is_free(const std::string& path) const override {
        return options_.is_free && options_.is_free(path);
    }
    Result<void> fill_memory(uint32_t shmid, uint64_t size, Slot fd) override {
        if (size == 0)
            return {};
        if (!options_.fill_memory)
            return fail(ErrorKind::kInternal, fmt::format("memfd {}", shmid), "nobody fills memory");
        return options_.fill_memory(shmid, size, fd, agent_);
    }
    std::optional<Slot> segment(uint32_t shmid) const override {
        return options_.segment ? options_.segment(shmid) : std::nullopt;
    }
    void settle(std::string_view label, Slot fd, uint32_t file_id, unsigned flags,
                const images::fown_entry& owner) override;

  private:
    struct LateOpen {
        uint32_t file_id;
        std::function<Slot(Program&)> open;
    };
    struct LateEmit {
        uint32_t file_id;
        std::function<void(Program&, const Installed&)> emit;
    };
    void index_tables();
    void install(const FilePlanTask& task);
    void emit_plugin_files();
    PluginFilePlan plan_plugin_file(const images::ext_file_entry& entry);
    uint32_t table_of(const TaskPrograms& task) const;
    void emit_late_opens();
    void emit_owner(uint32_t file_id, std::string_view label, const images::fown_entry& owner);
    void emit_locks();
    Slot placeholder();

    const FileImages& images_;
    std::vector<FilePlanTask> tasks_;
    Plan& plan_;
    Program& agent_;
    FilePlanOptions options_;
    std::string scratch_path_;
    uint32_t scratch_ = 0;
    std::map<uint32_t, const images::file_entry*> entries_;
    std::map<uint32_t, std::vector<Installed>> installed_;
    std::vector<FilePlanTask*> owners_;  // the task that installs each table
    std::map<uint32_t, std::optional<Slot>> places_;
    std::set<uint32_t> in_work_;
    std::map<std::pair<std::string, uint64_t>, Slot> shared_;
    std::vector<uint32_t> plugin_files_;
    std::vector<LateOpen> late_opens_;
    std::vector<LateEmit> late_emits_;
    std::vector<std::function<void(Program&)>> agent_ends_;
    std::optional<Slot> placeholder_;
};

void FilePlanner::Impl::index_tables() {
    std::set<uint32_t> seen;
    for (FilePlanTask& task : tasks_) {
        auto table = images_.tables.find(task.files_id);
        if (table == images_.tables.end() || !seen.insert(task.files_id).second)
            continue;
        owners_.push_back(&task);
        for (const images::fdinfo_entry& entry : table->second)
            installed_[entry.id()].push_back({&task.programs, entry.fd(), entry.flags()});
    }
}

Result<void> FilePlanner::Impl::plan_all() {
    CKPT_ASSIGN(uint32_t floor, descriptor_floor(images_));
    scratch_ = floor - 1;
    scratch_path_ = fmt::format("{}self/fd/{}", options_.proc ? "" : "/proc/", scratch_);
    index_tables();
    std::vector<Error> blockers;
    for (const auto& [file_id, where] : installed_)
        if (auto place = place_of(file_id); !place)
            blockers.push_back(std::move(place).error());
    CKPT_TRY(all_blockers("open files", "cannot be restored", std::move(blockers)));
    for (auto& emit : agent_ends_)
        emit(agent_);
    agent_ends_.clear();
    for (const FilePlanTask* task : owners_)
        install(*task);
    emit_plugin_files();
    emit_late_opens();
    for (const LateEmit& late : late_emits_)
        if (auto& where = installed(late.file_id); !where.empty())
            late.emit(*where.front().task->late, where.front());
    emit_locks();
    return {};
}

Result<std::optional<Slot>> FilePlanner::Impl::place_of(uint32_t file_id) {
    auto known = places_.find(file_id);
    if (known != places_.end())
        return known->second;
    const std::string object = fmt::format("file {}", file_id);
    auto entry = entries_.find(file_id);
    if (entry == entries_.end())
        return fail(ErrorKind::kBadImage, object, "files.img has no such file");
    const FileKind* kind = file_kind_of(entry->second->type());
    if (kind == nullptr)
        return fail(ErrorKind::kUnsupported, object,
                    fmt::format("cannot restore files of type {}",
                                static_cast<int>(entry->second->type())));
    if (!in_work_.insert(file_id).second)
        return fail(ErrorKind::kBadImage, object, "refers to itself");
    auto place = kind->plan(*entry->second, *this);
    in_work_.erase(file_id);
    if (place)
        places_[file_id] = *place;
    return place;
}

Result<Slot> FilePlanner::Impl::slot_of(uint32_t file_id) {
    CKPT_ASSIGN(std::optional<Slot> place, place_of(file_id));
    if (!place)
        return fail(ErrorKind::kUnsupported, fmt::format("file {}", file_id),
                    "is there only when all tasks are, which is too late here");
    return *place;
}

Slot FilePlanner::Impl::reopen(Program& program, std::string_view label, Slot slot, unsigned flags) {
    // A path needs a number that is known now; slots get theirs when the plan runs.
    program.call(label, SYS_dup3, {slot, scratch_, O_CLOEXEC});
    const unsigned kept = flags & ~static_cast<unsigned>(O_NOFOLLOW | O_CREAT | O_EXCL | O_TRUNC);
    Slot opened = program.descriptor(label, SYS_openat,
                                     {options_.proc ? Arg(*options_.proc) : Arg(AT_FDCWD),
                                      plan_.string(scratch_path_), kept | O_CLOEXEC});
    program.call(label, SYS_close, {scratch_});
    return opened;
}

void FilePlanner::Impl::settle(std::string_view label, Slot fd, uint32_t file_id, unsigned flags,
                               const images::fown_entry& owner) {
    const bool is_path = (flags & O_PATH) != 0;
    if ((flags & kSettableFlags) != 0 && !is_path)
        agent_.call(label, SYS_fcntl, {fd, F_SETFL, flags & kSettableFlags});
    if (owner.signum() != 0)
        agent_.call(label, SYS_fcntl, {fd, F_SETSIG, owner.signum()});
    if (owner.pid() != 0)
        emit_owner(file_id, label, owner);
}

void FilePlanner::Impl::emit_owner(uint32_t file_id, std::string_view label,
                                   const images::fown_entry& owner) {
    // The process that gets the signals has to exist.
    f_owner_ex who{};
    who.type = static_cast<decltype(who.type)>(owner.pid_type());
    who.pid = static_cast<pid_t>(owner.pid());
    const ArenaRef at = plan_.object(who);
    when_installed(file_id, [=, text = std::string(label)](Program& late, const Installed& where) {
        late.call(text, SYS_fcntl, {where.number, F_SETOWN_EX, at});
    });
}

Slot FilePlanner::Impl::placeholder() {
    if (!placeholder_)
        placeholder_ = agent_.descriptor("placeholder", SYS_eventfd2, {0, EFD_CLOEXEC});
    return *placeholder_;
}

void FilePlanner::Impl::install(const FilePlanTask& task) {
    for (const images::fdinfo_entry& entry : images_.tables.at(task.files_id)) {
        const std::optional<Slot>& place = places_.at(entry.id());
        const std::string label = fmt::format("pid {} fd {}", task.programs.pid, entry.fd());
        // What is opened late must not be given a number that is still to be filled.
        const bool keep = place && !(entry.flags() & FD_CLOEXEC);
        task.programs.stage->call(label, SYS_dup3,
                                  {place ? *place : placeholder(), entry.fd(),
                                   keep ? 0 : O_CLOEXEC});
    }
}

uint32_t FilePlanner::Impl::table_of(const TaskPrograms& task) const {
    for (const FilePlanTask& known : tasks_)
        if (known.programs.pid == task.pid)
            return known.files_id;
    return 0;
}

// It is made where it was taken from: a driver may know processes.
PluginFilePlan FilePlanner::Impl::plan_plugin_file(const images::ext_file_entry& entry) {
    const std::vector<Installed>& places = installed(entry.id());
    PluginFilePlan file{&entry, places.front().task, {}, {}};
    for (FilePlanTask& task : tasks_) {
        auto shares = [&](const Installed& where) { return table_of(*where.task) == task.files_id; };
        if (static_cast<uint32_t>(task.programs.pid) == entry.pid() &&
            std::any_of(places.begin(), places.end(), shares))
            file.maker = &task.programs;
    }
    const uint32_t table = table_of(*file.maker);
    for (const Installed& where : places)
        (table_of(*where.task) == table ? file.numbers : file.others).push_back(where);
    return file;
}

void FilePlanner::Impl::emit_plugin_files() {
    std::vector<PluginFilePlan> files;
    for (uint32_t id : plugin_files_) {
        const images::ext_file_entry& entry = entries_.at(id)->ext();
        files.push_back(plan_plugin_file(entry));
        if (entry.fown().pid() != 0)
            emit_owner(id, fmt::format("file {}", id), entry.fown());
    }
    plan_plugin_files(files, plan_);
}

void FilePlanner::Impl::emit_late_opens() {
    for (const LateOpen& late : late_opens_) {
        std::map<TaskPrograms*, std::vector<Installed>> by_task;
        for (const Installed& where : installed(late.file_id))
            by_task[where.task].push_back(where);
        for (const auto& [task, places] : by_task) {
            Slot opened = late.open(*task->late);
            const std::string label = fmt::format("pid {} fd {}", task->pid, places[0].number);
            for (const Installed& where : places)
                task->late->call(label, SYS_dup3,
                                 {opened, where.number,
                                  where.descriptor_flags & FD_CLOEXEC ? O_CLOEXEC : 0});
            task->late->call(label, SYS_close, {opened});
        }
    }
}

void FilePlanner::Impl::emit_locks() {
    for (const images::file_lock_entry& lock : images_.locks) {
        auto task = std::find_if(tasks_.begin(), tasks_.end(), [&](const FilePlanTask& candidate) {
            return candidate.programs.pid == lock.pid();
        });
        if (task != tasks_.end())
            plan_lock(lock, task->programs.last ? *task->programs.last : *task->programs.late,
                      plan_);
    }
}

bool FilePlanner::Impl::fills_table(pid_t pid) const {
    return std::any_of(owners_.begin(), owners_.end(),
                       [&](const FilePlanTask* owner) { return owner->programs.pid == pid; });
}

void FilePlanner::Impl::close_strangers(const FilePlanTask& task, uint32_t floor, Program& program) {
    if (!fills_table(task.programs.pid))
        return;
    std::set<uint32_t> own;
    for (const images::fdinfo_entry& entry : images_.tables.at(task.files_id))
        own.insert(entry.fd());
    own.insert(floor);
    uint32_t next = 0;
    for (uint32_t number : own) {
        if (number > next)
            program.call(fmt::format("pid {} what plugins left open", task.programs.pid), SYS_close_range,
                         {next, number - 1, 0});
        next = number + 1;
    }
}

Result<void> FilePlanner::Impl::plan_fs(const FilePlanTask& task, Program& program) {
    auto found = images_.fs.find(task.programs.pid);
    const std::string who = fmt::format("pid {}", task.programs.pid);
    if (found == images_.fs.end())
        return fail(ErrorKind::kBadImage, who, "its fs image is missing");
    const images::fs_entry& fs = found->second;
    auto root = entries_.find(fs.root_id());
    if (root == entries_.end() || !root->second->has_reg())
        return fail(ErrorKind::kBadImage, who, "its root directory is missing in files.img");
    CKPT_ASSIGN(Slot cwd, slot_of(fs.cwd_id()));
    if (root->second->reg().name() != "/") {
        CKPT_ASSIGN(Slot dir, slot_of(fs.root_id()));
        program.call(who + " root", SYS_fchdir, {dir});
        program.call(who + " root", SYS_chroot, {plan_.string(".")});
    }
    program.call(who + " cwd", SYS_fchdir, {cwd});
    if (fs.has_umask())
        program.call(who + " umask", SYS_umask, {fs.umask()});
    return {};
}

FilePlanner::FilePlanner(const FileImages& images, std::vector<FilePlanTask> tasks, Plan& plan,
                         Program& agent, FilePlanOptions options)
    : impl_(std::make_unique<Impl>(images, std::move(tasks), plan, agent, std::move(options))) {}
FilePlanner::~FilePlanner() = default;

Result<void> FilePlanner::plan() {
    return impl_->plan_all();
}
Result<Slot> FilePlanner::slot_of_file(uint32_t file_id) {
    return impl_->slot_of(file_id);
}
bool FilePlanner::fills_table(pid_t pid) const {
    return impl_->fills_table(pid);
}

void FilePlanner::close_strangers(const FilePlanTask& task, uint32_t floor, Program& program) {
    impl_->close_strangers(task, floor, program);
}
Result<void> FilePlanner::plan_fs(const FilePlanTask& task, Program& program) {
    return impl_->plan_fs(task, program);
}

}  // namespace checkpointd
